"""The way out: from archives to files for other programs, NIfTI volumes or pictures."""

"""The way out: from archives to files of other programs, NIfTI volumes or pictures."""

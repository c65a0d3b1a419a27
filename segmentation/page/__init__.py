"""The report of experiments: one page without requests, the same in Markdown, and its figures as files."""

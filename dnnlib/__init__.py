"""Helpers that know nothing of networks or of MR: configuration, files, run folders, text."""

"""Slices ↔ zip: archives of joint slices, and what makes archives from archives."""

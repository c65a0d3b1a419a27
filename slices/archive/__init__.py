"""Slices ↔ zip: archives of joint slices, and archives made from archives."""

"""Pages without requests: one HTML file with its style, its script and its pictures inside."""

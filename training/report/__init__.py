"""The page about runs: what their folders tell, as one HTML file and one picture. Imports no torch."""

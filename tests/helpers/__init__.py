"""What several tests share: drawn data, golden arrays, calls of the programs."""

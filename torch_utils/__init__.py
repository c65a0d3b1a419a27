"""Helpers for PyTorch, independent of MR: operators, checkpoints, statistics, loading and order of data."""

"""Helpers around PyTorch that know nothing of MR: operators, checkpoints, statistics, data order."""

"""Helpers that know nothing about networks or MR: configuration, files, processes, run folders, the system, text."""

from dnnlib.system import require_ground

require_ground()  # here, because every program of this project imports this package first

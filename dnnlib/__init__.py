"""Helpers that know nothing of networks or of MR: configuration, files, run folders, the system, text."""

from dnnlib.system import require_ground

require_ground()  # here, since whatever is imported of this project comes by before it needs more

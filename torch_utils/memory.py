"""How this process gets memory from the system."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Keep the memory of freed tensors for the next ones, instead of handing it back to the system.

    By default glibc returns big blocks when they are freed and asks for them anew, and the system clears every page of
    them: on a CPU that takes several times as long as filling the tensor. The price is that a process stays as large
    as it ever was. Returns whether it could be set: on Linux with glibc; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 64 << 20}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])

"""Memory: how this process gets it from the system, and messages for when none is left. Imports no torch."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import re
import sys
from collections.abc import Iterator

from dnnlib.errors import UserError

# How PyTorch, its libraries and the system's loader say that no memory is left. Python raises MemoryError.
_NONE_LEFT = re.compile(
    "out of memory|(can't|cannot|unable to) allocate memory|not enough memory|bad_alloc|_ALLOC_FAILED|"
    "failed to map segment|could not (create|execute) a (primitive|memory)",  # the last is oneDNN
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:tried to allocate|unable to allocate) ([\d.]+) (bytes|[KMGTP]i?B)", re.IGNORECASE)
_OF_GPU = re.compile(r"total capacity of ([\d.]+ \w+)")

# Names of settings in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Keep the memory of freed tensors for the next ones, instead of handing it back to the system.

    By default glibc returns big blocks when they are freed and asks for them anew, and the system clears every page of
    them. On a CPU that takes several times as long as filling the tensor. The price is that a process never becomes
    smaller. Returns whether it could be set: it can on Linux with glibc; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 64 << 20}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])


@contextlib.contextmanager
def naming_what_to_lower(options: str) -> Iterator[None]:
    """Turn want of memory in the block, on CPU or GPU, into a UserError that names `options`, such as "--batch"."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not means_no_memory(error):
            raise
        if isinstance(error, ImportError):
            raise UserError("too little memory even for what the program itself loads: give it more") from None
        raise UserError(f"{describe_want(error)}: lower {options}") from None


def means_no_memory(error: BaseException) -> bool:
    """Whether an exception of Python, NumPy, PyTorch or the system says that no memory was left."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, (RuntimeError, OSError, ImportError)) and bool(_NONE_LEFT.search(str(error))))
    )


def describe_want(error: BaseException) -> str:
    """Which memory ran out, how much was asked for and how much a GPU has, as far as the exception says it."""
    text = str(error)
    kind = "GPU memory" if re.search("CUDA|CUDNN|CUBLAS|HIP", text) else "memory"
    facts = []
    if asked := _ASKED.search(text):
        facts.append(f"{_readable(asked[1], asked[2])} more were asked for")
    if gpu := _OF_GPU.search(text):
        facts.append(f"the GPU has {gpu[1]}")
    return f"out of {kind}" + (f" ({'; '.join(facts)})" if facts else "")


def _readable(number: str, unit: str) -> str:
    """An amount of memory; bytes become MiB or GiB."""
    if unit.lower() != "bytes":
        return f"{number} {unit}"
    return f"{float(number) / 2**20:.3g} MiB" if float(number) < 2**30 else f"{float(number) / 2**30:.3g} GiB"

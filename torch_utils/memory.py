"""Memory allocation of this process, and messages for when memory runs out. Imports no torch."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import re
import resource
import sys
from collections.abc import Iterator

from dnnlib.errors import Failure

# Messages of PyTorch, its libraries and the system's loader when memory runs out. Python itself raises MemoryError.
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
    """Keep the memory of freed tensors for the next ones, instead of returning it to the system.

    By default, glibc returns large blocks when they are freed and requests them again later. The system then clears
    every page, which takes several times as long as filling the tensor on a CPU. The price: a process never shrinks.
    Returns whether the setting took effect. It does on Linux with glibc; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # No separate mappings for large blocks, no shrinking of the heap, and growth in steps of 64 MiB.
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 64 << 20}
    # A list, not a generator, so that all() does not stop at the first failure.
    return all([mallopt(name, value) == 1 for name, value in settings.items()])


@contextlib.contextmanager
def naming_what_to_lower(options: str) -> Iterator[None]:
    """Turn out-of-memory errors of CPU or GPU in the block into a Failure, which tells this process's peak as well.

    options: what the user should lower, such as "--batch", and to what.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not means_no_memory(error):
            raise
        if isinstance(error, ImportError):
            raise Failure("too little memory to load the program's libraries: give it more") from error
        raise Failure(f"{describe_want(error)}: lower {options}") from error


def means_no_memory(error: BaseException) -> bool:
    """Return whether an exception of Python, NumPy, PyTorch or the system means that memory ran out."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, (RuntimeError, OSError, ImportError)) and bool(_NONE_LEFT.search(str(error))))
    )


def describe_want(error: BaseException) -> str:
    """Say which memory ran out, how much was requested, how much the GPU has, and how much was used at the peak.

    As far as the exception tells.
    """
    text = str(error)
    of_gpu = bool(re.search("CUDA|CUDNN|CUBLAS|HIP", text))
    facts = []
    if asked := _ASKED.search(text):
        facts.append(f"{_readable(asked[1], asked[2])} more were asked for")
    if gpu := _OF_GPU.search(text):
        facts.append(f"the GPU has {gpu[1]}")
    facts.append(f"this process used {_readable(str(_peak(of_gpu)), 'bytes')} at its peak")
    return f"out of {'GPU memory' if of_gpu else 'memory'} ({'; '.join(facts)})"


def _peak(of_gpu: bool) -> int:
    """Return how many bytes this process has used at most, on its GPU or of the machine's memory."""
    torch = sys.modules.get("torch")
    if of_gpu and torch is not None:
        return torch.cuda.max_memory_reserved()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _readable(number: str, unit: str) -> str:
    """Format an amount of memory. Bytes are converted to MiB or GiB."""
    if unit.lower() != "bytes":
        return f"{number} {unit}"
    return f"{float(number) / 2**20:.4g} MiB" if float(number) < 2**30 else f"{float(number) / 2**30:.3g} GiB"

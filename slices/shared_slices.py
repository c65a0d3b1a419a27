"""Slices kept once for all processes of a machine, in a file that the system holds in memory."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

import numpy as np

_THERE = b"\1"  # the mark of a slice that is there


class SharedSlices:
    """Stored slices of one shape by number, as in a dictionary, but in a file that several processes have open.

    Whoever needs a slice first puts it there. Several may do so at once, as all write the same bytes. The file is read
    and written like any other: mapped into memory, a full disk or a shortened file would kill the process.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, ...], create: bool) -> None:
        """Open the file, or create it with room for `count` slices uint8 [*shape]. Raises OSError."""
        self._shape, self._bytes = shape, math.prod(shape)
        self._marks = count * self._bytes  # where the marks lie: behind all slices, one byte each
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
        if create:
            try:
                _make_room(self._file, self._marks + count)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                raise OSError(error.errno, error.strerror, str(path)) from None

    def __del__(self) -> None:
        if "_file" in self.__dict__:  # missing if it could not be opened
            os.close(self._file)

    def get(self, n: int) -> np.ndarray | None:
        """Slice number n, read-only, or None if it is not there."""
        # The mark is read first, and written last. The calls keep this order even where processors reorder accesses.
        if os.pread(self._file, 1, self._marks + n) != _THERE:
            return None
        content = os.pread(self._file, self._bytes, n * self._bytes)
        return np.frombuffer(content, np.uint8).reshape(self._shape) if len(content) == self._bytes else None

    def __setitem__(self, n: int, stored: np.ndarray) -> None:
        """Put slice number n there. Where the system can't write it, it is not there."""
        with contextlib.suppress(OSError):
            if os.pwrite(self._file, stored.tobytes(), n * self._bytes) == self._bytes:
                os.pwrite(self._file, _THERE, self._marks + n)


def _make_room(file: int, size: int) -> None:
    """Give an empty file this size, filled with zeros. Raises OSError at once if the disk is too full, on Linux."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)

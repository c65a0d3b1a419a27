"""Fingerprints: short texts that change when options, files or folders change."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from dnnlib.files import sha256


def fingerprint(content: Any) -> str:
    """SHA-256 of plain JSON values."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def describe_input(path: Path) -> str | list:
    """Return values that change when an input changes: the SHA-256 of a file, or a list of the files in a folder.

    A file is read once in a process, as long as its size, inode and times stay the same.
    Files in a folder are listed with name, size, and the times of content and inode (mtime and ctime). Reading them all
    would take too long. A file that takes another file's name has the old mtime, but a new ctime. Hidden files are left
    out. Links are followed, but each folder is entered once, even if links lead to it twice or in a circle.
    """
    if path.is_file():
        state = os.stat(path)  # before the file is read: if it changes meanwhile, it is read again
        return _sha256(path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    found: list[list] = []
    seen: dict[tuple[int, int], str] = {}  # device and inode of a folder -> where it was entered
    for folder, folders, names in os.walk(path, followlinks=True):
        state = os.stat(folder)
        place = os.path.relpath(folder, path)
        first = seen.setdefault((state.st_dev, state.st_ino), place)
        if first != place:  # seen before, under another path
            found.append([place, first])
            folders.clear()
            continue
        # Assign in place: os.walk then enters the folders that are left, in this order.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            with contextlib.suppress(OSError):  # a link to nowhere
                state = os.stat(os.path.join(folder, name))
                found.append([os.path.join(place, name), state.st_size, state.st_mtime_ns, state.st_ctime_ns])
    return found


@functools.cache
def _sha256(path: Path, *state: int) -> str:
    return sha256(path)

"""Numbered run folders and their logs."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import tqdm

from dnnlib.errors import FULL, describe_os_error
from dnnlib.files import make_folder
from dnnlib.locks import hold, is_held
from dnnlib.system import PLAIN

_HELD = 1 << 20
_LOCK = ".lock"  # in a run folder; held by the process that trains there


def make_run_folder(outdir: str | os.PathLike, description: str) -> Path:
    """Create `outdir/NNNNN-description`, with the next free number NNNNN. Returns the folder."""
    outdir = make_folder(outdir)
    while True:
        used = [int(m[1]) for p in outdir.iterdir() if (m := re.match(r"(\d{5})(?:-|$)", p.name))]
        folder = outdir / f"{max(used, default=-1) + 1:05d}-{description}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue  # another process took the number first


@contextlib.contextmanager
def held_run_folder(folder: Path) -> Iterator[None]:
    """Be the only process in the block that trains in a run folder. Raises UserError with the other one's name."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(hold(folder / _LOCK, f"{folder} is in use by another training"))
        except OSError as error:  # the user knows the folder, not the lock
            raise OSError(error.errno, error.strerror or str(error), str(folder)) from error
        yield


def is_in_use(folder: Path) -> bool:
    """Return whether a process of this machine, or of one whose locks it sees, trains in a run folder."""
    return is_held(folder / _LOCK)


class Log:
    """Writes lines to a file and to the terminal, there above the progress bar.

    On a full disk, lines still reach the terminal, unless it is a file there too. Those that the file lacks, up to
    _HELD bytes, are written once there is room.
    """

    def __init__(self, path: str | os.PathLike | None, shown: bool = True) -> None:
        """path: None for a log that writes nothing, to the terminal neither. shown: lines go to the terminal too."""
        self._file: TextIO | None = None
        self._shown = shown
        if path is not None:
            self._file = open(path, "a", encoding="utf-8", errors=PLAIN, buffering=_HELD)

    def __call__(self, line: str = "") -> None:
        if self._file is None:
            return
        if self._shown:
            _show(line)
        with contextlib.suppress(OSError):
            self._file.write(line + "\n")
        self.flush()

    def flush(self) -> None:
        """Write the lines that the file lacks, if there is room for them."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.flush()

    @contextlib.contextmanager
    def warning(self, what: str) -> Iterator[None]:
        """Turn an error of the file system in the block into a warning. what: the file that is lacking then."""
        try:
            yield
        except OSError as error:
            self(f"warning: {what} was not written: {describe_os_error(error)}. Training goes on")

    def close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                _show(f"warning: {self._file.name} lacks its last lines: {error.strerror}")


def _show(line: str) -> None:
    """Write a line to the terminal. That may be a file on a full disk, which is no reason to end a program."""
    try:
        tqdm.tqdm.write(line)
    except OSError as error:
        if error.errno not in FULL:  # a pipe that nobody reads is one
            raise

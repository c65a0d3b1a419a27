"""Numbered run folders and their logs."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import tqdm

from dnnlib.files import make_folder
from dnnlib.locks import hold
from dnnlib.system import PLAIN

_HELD = 1 << 20


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
            held.enter_context(hold(folder / ".lock", f"{folder} is in use by another training"))
        except OSError as error:  # the user knows the folder, not the lock
            raise OSError(error.errno, error.strerror or str(error), str(folder)) from error
        yield


class Log:
    """Writes lines to a file and to the terminal, there above the progress bar.

    On a full disk, lines still reach the terminal. Those that the file lacks, up to _HELD bytes, are written once there
    is room.
    """

    def __init__(self, path: str | os.PathLike | None) -> None:
        """path: None for a log that writes nothing, to the terminal neither."""
        self._file: TextIO | None = None
        if path is not None:
            self._file = open(path, "a", encoding="utf-8", errors=PLAIN, buffering=_HELD)

    def __call__(self, line: str = "") -> None:
        if self._file is None:
            return
        tqdm.tqdm.write(line)
        with contextlib.suppress(OSError):
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                tqdm.tqdm.write(f"warning: {self._file.name} lacks its last lines: {error.strerror}")

"""Numbered run folders and their logs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TextIO

import tqdm

from dnnlib.files import make_folder
from dnnlib.system import PLAIN


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


class Log:
    """Writes lines to a file and to the terminal, there above the progress bar."""

    def __init__(self, path: str | os.PathLike) -> None:
        self._file: TextIO = open(path, "a", encoding="utf-8", errors=PLAIN)

    def __call__(self, line: str = "") -> None:
        tqdm.tqdm.write(line)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

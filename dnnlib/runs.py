"""Numbered run folders, and their log."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TextIO

import tqdm

from dnnlib.files import make_folder
from dnnlib.system import PLAIN


def make_run_folder(outdir: str | os.PathLike, description: str) -> Path:
    """Create and return `outdir/NNNNN-description`, where NNNNN is one more than the largest number in use."""
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
    """A log that writes lines to the terminal, above a progress bar if there is one, and to a file."""

    def __init__(self, path: str | os.PathLike) -> None:
        self._file: TextIO = open(path, "a", encoding="utf-8", errors=PLAIN)

    def __call__(self, line: str = "") -> None:
        tqdm.tqdm.write(line)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

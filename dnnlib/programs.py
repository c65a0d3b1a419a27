"""Programs that jobs run: where they are, which sources they depend on, and how they are called."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dnnlib.code_hash import program_sha256


@dataclass(frozen=True)
class Programs:
    """Location of the programs that jobs run, and their source files."""

    folder: Path  # holds the programs and their packages
    # First words of a command, without -m -> the Python files that do its work. By default, a program's own file.
    entries: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def sources_of(self, command: Sequence[str]) -> str:
        """SHA-256 of the source files that a job's command runs: its entries, and all that they import."""
        words = command[1:] if command[0] == "-m" else command
        for begin, files in self.entries.items():
            if begin.split() == list(words[: len(begin.split())]):
                return program_sha256(*files, root=self.folder)
        own = f"{words[0]}/__main__.py" if command[0] == "-m" else words[0]
        return program_sha256(*[own] * (self.folder / own).is_file(), root=self.folder)

    def words(self, command: Sequence[str]) -> list[str]:
        """Return all words of a job's command, from Python on."""
        # Run a package by its path, as -m would prefer a file of that name in the working folder.
        program, *options = command[1:] if command[0] == "-m" else command
        return [sys.executable, program if program.startswith("-") else str(self.folder / program), *options]

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a command: modules come from the folder of the programs, never from the working folder."""
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}

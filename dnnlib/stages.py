"""A pipeline of commands: a stage runs again only if its options, inputs, sources or results have changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnlib.config import from_json, optional
from dnnlib.errors import UserError
from dnnlib.files import make_folder, read_json, sha256, write_json
from dnnlib.locks import hold
from dnnlib.processes import run_python
from dnnlib.sources import sources_sha256
from dnnlib.text import format_time

OUT = "{out}"  # stands for the output folder in a stage's command
_ENDED = (129, 130, 143)  # statuses of what was ended by SIGHUP, Ctrl-C or SIGTERM
_KILLED = 137  # by SIGKILL, from the system or from a user


@dataclass(frozen=True)
class Stage:
    """One command, with what it reads and what it leaves."""

    name: str  # of its record, and in messages
    purpose: str  # a line for the reader
    command: Sequence[str]  # what follows `python`: a program, or -m and a package; then options
    inputs: Sequence[str | Path]  # files and folders whose content decides whether the results are up to date
    outputs: Sequence[str]  # patterns below the output folder; of several matches the last in order counts
    replaces: bool = True  # it writes to the same names again, and takes --force for what it left there itself


@dataclass(frozen=True)
class Programs:
    """Where the programs of stages lie, and the sources that each one runs."""

    folder: Path  # holds the programs and their packages
    sources: Mapping[str, Sequence[str]]  # program or package -> other packages that it imports

    def sources_of(self, command: Sequence[str]) -> str:
        """SHA-256 of the sources that a stage's command runs."""
        name = command[1] if command[0] == "-m" else command[0]
        return sources_sha256(name, *self.sources.get(name, ()), root=self.folder)

    def run(self, command: Sequence[str], pass_fds: Sequence[int] = ()) -> int:
        """Run a stage's command, and return its exit status as a shell has it. pass_fds: open files that it keeps.

        Its modules are found in the folder of the programs, whatever lies in the working one.
        """
        # A package by its path: -m would take a file of that name in the working folder.
        program, *options = command[1:] if command[0] == "-m" else command
        program = program if program.startswith("-") else str(self.folder / program)
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        return run_python([program, *options], env=environment, pass_fds=pass_fds)


@dataclass(frozen=True)
class _Record:
    """What is known of a stage's last run; the content of stages/<name>.json."""

    complete: bool  # the command ended well
    wanted: str  # fingerprint of sources, command and inputs
    command: tuple[str, ...]
    results: dict[str, str] | None = optional(None)  # path below the output folder -> fingerprint; None: incomplete


class Stages:
    """Runs one stage after the other, each as a command of its own, unless its results are there already."""

    def __init__(self, outdir: Path, programs: Programs) -> None:
        self.outdir, self._programs = outdir, programs
        self.records = make_folder(outdir / "stages")
        self._locks: list[int] = []  # open lock files, which a stage keeps even if this process is killed

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the output folder against a second call, which would train among the files of this one."""
        busy = f"{self.outdir}: another call, or a stage that it began, is at work there; wait for it"
        with hold(self.records / "lock", busy) as lock:
            self._locks = [lock]
            yield

    def refuse_strangers(self, names: Sequence[str]) -> None:
        """Raise UserError if a file of these names is there, though no stage ever ran."""
        if not any(self.records.glob("*.json")):
            self._refuse([path for name in names for path in self._matches(name)])

    def run(self, stage: Stage) -> list[Path]:
        """Run the stage if need be, and return the paths of its outputs.

        Raises UserError if an output is there that this stage never made. Exits with a message if the command fails.
        """
        command = [word.replace(OUT, str(self.outdir)) for word in stage.command]
        # Neither the place nor the spelling of the output folder matters.
        portable = tuple(word.replace(str(self.outdir), OUT) for word in command)
        inputs = [describe_input(Path(path)) for path in stage.inputs]
        wanted = fingerprint([self._programs.sources_of(command), portable, *inputs])
        path = self.records / f"{stage.name}.json"
        last = from_json(_Record, read_json(path), str(path)) if path.exists() else None
        print(f"\n=== {stage.name}: {stage.purpose}", flush=True)
        if last is not None and last.results is not None:
            changed = self._changes(last.wanted, last.results, wanted)
            if changed is None:
                print("    done before with these options, inputs and sources")
                return [self.outdir / name for name in last.results]
            print(f"    {changed} changed since the last time: making them again")
        if stage.replaces and last is None:
            self._refuse([path for pattern in stage.outputs for path in self._matches(pattern)])
        if stage.replaces and last is not None:
            command.append("--force")
        write_json(path, _Record(False, wanted, portable))
        self._execute(command, stage.name)
        outputs = [self._last_match(pattern) for pattern in stage.outputs]
        results = {str(p.relative_to(self.outdir)): fingerprint(describe_input(p)) for p in outputs}
        write_json(path, _Record(True, wanted, portable, results))
        return outputs

    def _changes(self, last_wanted: str, results: Mapping[str, str], wanted: str) -> str | None:
        """What has changed since the last run, in words; None if nothing has."""
        if last_wanted != wanted:
            return "options, inputs or sources"
        paths = {self.outdir / name: was for name, was in results.items()}
        same = all(path.exists() and fingerprint(describe_input(path)) == was for path, was in paths.items())
        return None if same else "results"

    def _execute(self, command: Sequence[str], name: str) -> None:
        print("    $ python " + shlex.join(command), flush=True)
        start = time.time()
        status = self._programs.run(command, self._locks)
        if status:
            ended, killed = status in _ENDED, status == _KILLED
            why = " (killed, most likely for want of memory)" if killed else ""
            advice = "; the same command skips what is done and begins it anew" if ended or killed else ""
            print(f"\n{name} ended early{why}{advice}", file=sys.stderr)
            sys.exit(status if ended or status == 2 else 1)
        print(f"    took {format_time(time.time() - start)}", flush=True)

    def _refuse(self, strangers: Sequence[Path]) -> None:
        if strangers:
            raise UserError(f"{strangers[0]} is there already, but not from this stage: choose another --outdir")

    def _matches(self, pattern: str) -> list[Path]:
        return sorted(self.outdir.glob(pattern))

    def _last_match(self, pattern: str) -> Path:
        found = self._matches(pattern)
        assert found, f"{self.outdir} holds no {pattern}"
        return found[-1]


def fingerprint(content: Any) -> str:
    """SHA-256 of plain JSON values."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def describe_input(path: Path) -> str | list:
    """Plain values that change with an input: a file's SHA-256; for a folder, what lies in it and behind its links.

    Files in a folder are told by name, size and dates. The date of the last change of any kind is among them: a file
    gets it that takes the name of another. Hidden files are no data. A folder that links reach twice, or in an endless
    loop, is entered once.
    """
    if path.is_file():
        return sha256(path)
    found: list[list] = []
    seen: dict[tuple[int, int], str] = {}  # device and inode of a folder -> where it was entered
    for folder, folders, names in os.walk(path, followlinks=True):
        state = os.stat(folder)
        place = os.path.relpath(folder, path)
        first = seen.setdefault((state.st_dev, state.st_ino), place)
        if first != place:
            found.append([place, first])
            folders.clear()
            continue
        # In place: os.walk enters what is left in this list, in its order.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            with contextlib.suppress(OSError):  # a link to nowhere
                state = os.stat(os.path.join(folder, name))
                found.append([os.path.join(place, name), state.st_size, state.st_mtime_ns, state.st_ctime_ns])
    return found

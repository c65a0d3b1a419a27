"""Pipeline of commands. A stage runs again only if its options, inputs, sources or results have changed."""

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

from dnnlib.code_hash import sources_sha256
from dnnlib.config import from_json, optional
from dnnlib.errors import UserError
from dnnlib.files import make_folder, read_json, sha256, write_json
from dnnlib.locks import hold
from dnnlib.processes import run_python
from dnnlib.text import format_time

OUT = "{out}"  # stands for the output folder in a stage's command
# Stands in a stage's command and outputs for a name that options, inputs and sources decide. A command that continues
# in a folder of this name never mixes its files with those that it made of something else.
FINGERPRINT = "{fingerprint}"
_SHORT = 8  # characters of a fingerprint in a name
_ENDED = (129, 130, 143)  # exit statuses of a command that SIGHUP, Ctrl-C or SIGTERM ended: 128 + signal
_KILLED = 137  # SIGKILL, from a user, or from the system when memory runs out


@dataclass(frozen=True)
class Stage:
    """One command, with its inputs and outputs."""

    name: str  # of its record, and in messages
    purpose: str  # one line for the user
    command: Sequence[str]  # the words after `python`: a program, or -m and a package; then options
    inputs: Sequence[str | Path]  # files and folders; if their content changes, the stage runs again
    outputs: Sequence[str]  # glob patterns below the output folder; if several files match, the last one counts
    replaces: bool = True  # the command writes the same names every time, and has --force to replace its own files

    @property
    def continues(self) -> bool:
        """Whether the command, when it is called again, goes on where it was interrupted."""
        return any(FINGERPRINT in word for word in self.command)


@dataclass(frozen=True)
class Programs:
    """Location of the programs that stages run, and their source files."""

    folder: Path  # holds the programs and their packages
    sources: Mapping[str, Sequence[str]]  # program or package -> other packages that it imports

    def sources_of(self, command: Sequence[str]) -> str:
        """SHA-256 of the source files that a stage's command runs."""
        name = command[1] if command[0] == "-m" else command[0]
        return sources_sha256(name, *self.sources.get(name, ()), root=self.folder)

    def run(self, command: Sequence[str], pass_fds: Sequence[int] = ()) -> int:
        """Run a stage's command. Returns its exit status as a shell reports it.

        Modules are imported from the folder of the programs, never from the working folder.
        pass_fds: open files that the command inherits.
        """
        # Run a package by its path, as -m would prefer a file of that name in the working folder.
        program, *options = command[1:] if command[0] == "-m" else command
        program = program if program.startswith("-") else str(self.folder / program)
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        return run_python([program, *options], env=environment, pass_fds=pass_fds)


@dataclass(frozen=True)
class _Record:
    """Record of a stage's last run, stored as stages/<name>.json."""

    complete: bool  # the command ended without an error
    wanted: str  # fingerprint of sources, command and inputs
    command: tuple[str, ...]  # with OUT instead of the output folder
    results: dict[str, str] | None = optional(None)  # path below the output folder -> fingerprint; None: incomplete


class Stages:
    """Runs stages one after another, each as a command of its own. Skips stages whose results are up to date."""

    def __init__(self, outdir: Path, programs: Programs) -> None:
        self.outdir, self._programs = outdir, programs
        self.records = make_folder(outdir / "stages")
        self._locks: list[int] = []  # open lock files, which a stage keeps even if this process is killed

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lock the output folder, so that a second call can't write among the files of this one."""
        busy = f"{self.outdir}: another call, or a stage that it started, is at work there; wait for it"
        with hold(self.records / "lock", busy) as lock:
            self._locks = [lock]
            yield

    def refuse_strangers(self, names: Sequence[str]) -> None:
        """Raise UserError if files with these names exist although no stage has ever run."""
        if not any(self.records.glob("*.json")):
            self._refuse([path for name in names for path in self._matches(name)])

    def run(self, stage: Stage) -> list[Path]:
        """Run the stage if its results are missing or out of date. Returns the paths of its outputs.

        Raises UserError if an output exists that this stage has not made. Exits with a message if the command fails.
        """
        command = [word.replace(OUT, str(self.outdir)) for word in stage.command]
        # For the fingerprint: the output folder may move, or be spelled in another way.
        portable = tuple(word.replace(str(self.outdir), OUT) for word in command)
        inputs = [describe_input(Path(path)) for path in stage.inputs]
        wanted = fingerprint([self._programs.sources_of(command), portable, *inputs])
        command = [word.replace(FINGERPRINT, wanted[:_SHORT]) for word in command]
        patterns = [pattern.replace(FINGERPRINT, wanted[:_SHORT]) for pattern in stage.outputs]
        path = self.records / f"{stage.name}.json"
        last = from_json(_Record, read_json(path), str(path)) if path.exists() else None
        print(f"\n=== {stage.name}: {stage.purpose}", flush=True)
        if last is not None and last.results is not None:
            changed = self._changes(last.wanted, last.results, wanted)
            if changed is None:
                print("    done before with these options, inputs and sources")
                return [self.outdir / name for name in last.results]
            print(f"    {changed} changed since the last run: making them again")
        if stage.replaces and last is None:
            self._refuse([path for pattern in patterns for path in self._matches(pattern)])
        if stage.replaces and last is not None:
            command.append("--force")
        # An incomplete record, in case the command fails: the next call then knows whose the files are.
        write_json(path, _Record(False, wanted, portable))
        self._execute(command, stage)
        outputs = [self._last_match(pattern) for pattern in patterns]
        results = {str(p.relative_to(self.outdir)): fingerprint(describe_input(p)) for p in outputs}
        write_json(path, _Record(True, wanted, portable, results))
        return outputs

    def _changes(self, last_wanted: str, results: Mapping[str, str], wanted: str) -> str | None:
        """Name what has changed since the last run. None: nothing has."""
        if last_wanted != wanted:
            return "options, inputs or sources"
        paths = {self.outdir / name: was for name, was in results.items()}
        same = all(path.exists() and fingerprint(describe_input(path)) == was for path, was in paths.items())
        return None if same else "results"

    def _execute(self, command: Sequence[str], stage: Stage) -> None:
        """Run a command. If it fails, exit with a message and its status, or 1."""
        print("    $ python " + shlex.join(command), flush=True)
        start = time.time()
        status = self._programs.run(command, self._locks)
        if status:
            ended, killed = status in _ENDED, status == _KILLED
            why = " (killed, most likely for lack of memory)" if killed else ""
            again = "continues this one" if stage.continues else "starts this one again"
            advice = f"; the same command skips finished stages and {again}" if ended or killed else ""
            print(f"\n{stage.name} ended early{why}{advice}", file=sys.stderr)
            sys.exit(status if ended or status == 2 else 1)
        print(f"    took {format_time(time.time() - start)}", flush=True)

    def _refuse(self, strangers: Sequence[Path]) -> None:
        """Raise UserError if there are strangers: files that may not be replaced, as no stage has made them."""
        if strangers:
            raise UserError(f"{strangers[0]} exists already, but not from this stage: choose another --outdir")

    def _matches(self, pattern: str) -> list[Path]:
        """Files in the output folder that match a pattern, in order of their names."""
        return sorted(self.outdir.glob(pattern))

    def _last_match(self, pattern: str) -> Path:
        found = self._matches(pattern)
        assert found, f"{self.outdir} holds no {pattern}"
        return found[-1]


def fingerprint(content: Any) -> str:
    """SHA-256 of plain JSON values."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def describe_input(path: Path) -> str | list:
    """Return values that change when an input changes: the SHA-256 of a file, or a list of the files in a folder.

    Files in a folder are listed with name, size, and the times of content and inode (mtime and ctime). Reading them all
    would take too long. A file that takes another file's name has the old mtime, but a new ctime. Hidden files are left
    out. Links are followed, but each folder is entered once, even if links lead to it twice or in a circle.
    """
    if path.is_file():
        return sha256(path)
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

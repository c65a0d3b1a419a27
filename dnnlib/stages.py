"""A pipeline of commands: each runs once, and again only when its options, inputs, sources or results changed."""

import contextlib
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.files import make_folder, read_json, sha256, write_json
from dnnlib.locks import hold
from dnnlib.processes import run_python
from dnnlib.sources import sources_sha256
from dnnlib.text import format_time

ENDED = (129, 130, 143)  # statuses of what was ended by SIGHUP, Ctrl-C or SIGTERM
KILLED = 137  # by SIGKILL, of the system or of a user


class Stages:
    """Runs one stage after the other as a command of its own, unless its results are there already.

    A stage's record (`stages/<name>.json`) holds a fingerprint of its options, inputs and sources, and of its results;
    it is complete when the command ended well.
    """

    def __init__(self, outdir: Path, programs: Path, sources: Mapping[str, Sequence[str]]) -> None:
        """programs: the folder where the commands' programs lie; sources: program -> the packages that it runs."""
        self.outdir, self._programs, self._sources = outdir, programs, sources
        self.records = make_folder(outdir / "stages")
        self._locks: list[int] = []

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the output folder against a second call, which would train among the files of this one."""
        busy = f"{self.outdir}: another call, or a stage that it began, is at work there; wait for it"
        with hold(self.records / "lock", busy) as lock:
            self._locks = [lock]
            yield

    def refuse_strangers(self, names: Sequence[str]) -> None:
        """Raise UserError if one of the last results is there, though no stage ever ran."""
        if not any(self.records.glob("*.json")):
            self._refuse([path for name in names for path in self._matches(name)])

    def _refuse(self, strangers: list[Path]) -> None:
        if strangers:
            raise UserError(f"{strangers[0]} is there already, but not from this stage: choose another --outdir")

    def run(
        self,
        name: str,
        purpose: str,
        command: Sequence[str],
        inputs: Sequence[str | Path],
        outputs: Sequence[str],
        replaces: bool = True,
    ) -> list[Path]:
        """Run `python command` and return the paths of its outputs.

        `{out}` in the command is the output folder. outputs are patterns below it; of several matches the last in
        order counts. replaces: the command writes to the same names again, and takes --force where an earlier call of
        this very stage left something. What the stage did not make is never replaced.
        """
        command = [part.replace("{out}", str(self.outdir)) for part in command]
        record_path = self.records / f"{name}.json"
        record = read_json(record_path) if record_path.exists() else {}
        # Neither the place nor the spelling of the output folder matters.
        portable = [part.replace(str(self.outdir), "{out}") for part in command]
        wanted = fingerprint([self._sources_of(command), portable, *(describe_input(Path(i)) for i in inputs)])
        print(f"\n=== {name}: {purpose}", flush=True)
        if record.get("complete") and record["wanted"] == wanted and self._are_there(record["results"]):
            print("    done before with these options, inputs and sources")
            return [self.outdir / name for name in record["results"]]
        if record.get("complete"):
            changed = "options, inputs or sources" if record["wanted"] != wanted else "results"
            print(f"    {changed} changed since the last time: making them again")
        if not record and replaces:
            self._refuse([path for pattern in outputs for path in self._matches(pattern)])
        if record and replaces:
            command.append("--force")
        write_json(record_path, {"complete": False, "wanted": wanted, "command": portable})
        print("    $ python " + shlex.join(command), flush=True)
        self._execute(command, name)
        results = [self._newest(pattern) for pattern in outputs]
        described = {str(p.relative_to(self.outdir)): fingerprint(describe_input(p)) for p in results}
        write_json(record_path, {"complete": True, "wanted": wanted, "command": portable, "results": described})
        return results

    def _sources_of(self, command: Sequence[str]) -> str:
        """Fingerprint of the sources that a stage's command runs."""
        name = command[1] if command[0] == "-m" else command[0]
        return sources_sha256(name, *self._sources.get(name, ()), root=self._programs)

    def _are_there(self, results: dict[str, str]) -> bool:
        paths = {self.outdir / name: was for name, was in results.items()}
        return all(path.exists() and fingerprint(describe_input(path)) == was for path, was in paths.items())

    def _matches(self, pattern: str) -> list[Path]:
        return sorted(self.outdir.glob(pattern))

    def _newest(self, pattern: str) -> Path:
        found = self._matches(pattern)
        assert found, f"{self.outdir} holds no {pattern}"
        return found[-1]

    def _execute(self, command: list[str], name: str) -> None:
        start = time.time()
        # A module by its path: -m would take a file of that name in the working folder.
        script, *options = command[1:] if command[0] == "-m" else command
        script = script if script.startswith("-") else str(self._programs / script)
        status = run_python([script, *options], env=environment(self._programs), pass_fds=self._locks)
        if status:
            ended = status in ENDED
            killed = " (killed, most likely for want of memory)" if status == KILLED else ""
            advice = "; the same command skips what is done and begins it anew" if ended or killed else ""
            print(f"\n{name} ended early{killed}{advice}", file=sys.stderr)
            sys.exit(status if ended or status == 2 else 1)
        print(f"    took {format_time(time.time() - start)}", flush=True)


def environment(programs: Path) -> dict[str, str]:
    """The environment of a stage: its modules are found beside the programs from whatever folder it is called."""
    path = os.pathsep.join([str(programs), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def fingerprint(content) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def describe_input(path: Path):
    """What tells whether an input changed: a file's SHA-256; of a folder, what lies in it and behind its links.

    Of its files names, sizes and dates: also the date of the last change of any kind, which a file gets that takes the
    name of another. Hidden ones are no data. A folder that is reached twice, or for ever in a loop, is entered once.
    """
    if path.is_file():
        return sha256(path)
    found, seen = [], {}
    for folder, folders, names in os.walk(path, followlinks=True):
        state = os.stat(folder)
        place = os.path.relpath(folder, path)
        first = seen.setdefault((state.st_dev, state.st_ino), place)
        if first != place:
            found.append([place, first])
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            with contextlib.suppress(OSError):  # a link to nowhere
                state = os.stat(os.path.join(folder, name))
                found.append([os.path.join(place, name), state.st_size, state.st_mtime_ns, state.st_ctime_ns])
    return found

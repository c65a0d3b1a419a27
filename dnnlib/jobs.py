"""Graph of jobs. A job is one command; it runs again only if its options, inputs, sources or results have changed.

    graph = Graph(outdir, programs, [
        Job("convert", "cut slices", ["dataset_tool.py", "convert", "--dest={out}/real"], [source], ["real/train.zip"]),
        Job("train", "train", ["train.py", f"--data={result_of('convert')}"], [], ["gan/network-*.safetensors"]),
    ])
    graph.run(find_slots())
    (snapshot,) = graph.results("train")

A result of another job in a command or in inputs is an edge of the graph. `outdir`/jobs holds a record of each job, and
the output of jobs that ran beside others.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from dnnlib.config import from_json
from dnnlib.errors import Failure, UserError
from dnnlib.files import make_folder, read_json, write_json
from dnnlib.fingerprints import describe_input, fingerprint
from dnnlib.locks import hold
from dnnlib.plan import Pace, Plan, time_for
from dnnlib.pool import Pool
from dnnlib.programs import Programs
from dnnlib.records import Record
from dnnlib.slots import Slots

OUT = "{out}"  # stands for the output folder in a job's command
# Stands in a job's command and outputs for a name that options, inputs and sources decide. A command that continues
# in a folder of this name never mixes its files with those that it made of something else.
FINGERPRINT = "{fingerprint}"
_SHORT = 8  # characters of a fingerprint in a name
_RESULT = re.compile("\0([^\0]+)\0([0-9]+)\0")  # what `result_of` makes; no path and no argument can hold a NUL
_NAME = re.compile(r"[\w+][\w+. -]*")  # of a job, as a record is named after it


def result_of(name: str, index: int = 0) -> str:
    """Return a text that stands for the path of a job's output, in words of commands and in inputs of other jobs.

    index: which of the job's `outputs`.
    """
    return f"\0{name}\0{index}\0"


@dataclass(frozen=True)
class Job:
    """One command, with its inputs and outputs."""

    name: str  # of its record, and in messages
    purpose: str  # one line for the user
    command: Sequence[str]  # the words after `python`: a program, or -m and a package; then options
    inputs: Sequence[str | Path]  # files and folders beside the results in the command: if they change, it runs again
    outputs: Sequence[str]  # glob patterns below the output folder; if several files match, the last one counts
    kind: str = ""  # jobs of one kind take their time in proportion to their work; by default, the name
    work: float = 1  # for example steps; how long the job will take is learned from finished ones of its kind
    alone: bool = False  # takes all slots of this machine; a launcher's slots are not of this machine
    replaces: bool = True  # the command writes the same names every time, and has --force to replace its own files

    @property
    def continues(self) -> bool:
        """Whether the command, when it is called again, goes on where it was interrupted."""
        return any(FINGERPRINT in word for word in self.command)

    @property
    def needs(self) -> list[tuple[str, int]]:
        """Results that the job reads, as (name of a job, index of its output)."""
        texts = [*self.command, *map(str, self.inputs)]
        return [(name, int(index)) for text in texts for name, index in _RESULT.findall(text)]


@dataclass(frozen=True)
class Look:
    """What is known of a job as soon as its inputs are there."""

    job: Job
    wanted: str  # see Record
    portable: tuple[str, ...]  # command with OUT instead of the output folder
    command: tuple[str, ...]  # with paths
    patterns: tuple[str, ...]  # of outputs
    last: Record | None
    results: dict[str, str] | None  # as in Record, if they are up to date
    ended: bool = False  # the results are there, but the record lacks them

    @property
    def changed(self) -> str:
        """What has changed since the last run that was complete, or "" if there was none."""
        if self.last is None or self.last.results is None or self.results is not None:
            return ""
        return "results" if self.last.wanted == self.wanted else "options, inputs or sources"


class Graph:
    """Jobs in an output folder, in the order in which they are started if all of them can be."""

    def __init__(self, outdir: Path, programs: Programs, jobs: Sequence[Job]) -> None:
        """Raises ValueError for two jobs of one name, and for results of unknown jobs or in a circle."""
        self.outdir, self.programs, self.jobs = outdir, programs, tuple(jobs)
        self.folder = outdir / "jobs"  # of records and logs
        self.edges = _edges(self.jobs)  # name of a job -> names of those whose results it reads
        self._results: dict[str, list[Path]] = {}

    def results(self, name: str) -> list[Path]:
        """Paths of a finished job's outputs, one for each of its patterns."""
        return self._results[name]

    def resolve(self, text: str) -> str:
        """Put paths in place of results of finished jobs in a text."""
        return _RESULT.sub(lambda match: str(self._results[match[1]][int(match[2])]), text)

    def refuse_strangers(self, names: Sequence[str]) -> None:
        """Raise UserError if files with these names exist although no job has ever run."""
        if not any(self.folder.glob("*.json")):
            self._refuse([path for name in names for path in self._matches(name)])

    def run(self, slots: Slots, lock: int | None = None) -> None:
        """Run the jobs whose results are missing or out of date.

        lock: what `held` yields; by default, the folder is held by this call alone.
        If a command fails, no other is started; when those at work have ended, exits with the status of the first that
        failed. Raises UserError if an output exists that its job has not made.
        """
        with held(self.outdir) if lock is None else contextlib.nullcontext(lock) as lock:
            Pool(self, slots, lock).run()

    def plan(self, slots: Slots) -> Plan:
        """Tell what `run` would do at most, and how long it would take. Changes and runs nothing."""
        graph = Graph(self.outdir, self.programs, self.jobs)  # with results of its own
        commands: dict[str, str] = {}
        for job in graph.in_order():
            if graph.edges[job.name] <= graph._results.keys():
                look = graph.look(job)
                if look.results is not None:
                    graph._finish(look, look.results)
                    continue
                commands[job.name] = graph.shown(look.command)
            else:
                commands[job.name] = graph.shown(graph._foreseen(job))
        todo = [job for job in self.jobs if job.name in commands]
        pace = Pace.of(self.records())
        return Plan(self.jobs, {job.name: commands[job.name] for job in todo}, time_for(todo, self.edges, pace, slots))

    def in_order(self) -> Iterator[Job]:
        """Yield all jobs, each after those whose results it reads."""
        named = {job.name: job for job in self.jobs}
        return (named[name] for name in TopologicalSorter(self.edges).static_order())

    def records(self) -> list[Record]:
        """Records of all jobs that ever ran in the output folder, in this graph or in another one."""
        return [_read(path) for path in sorted(self.folder.glob("*.json"))]

    def commands(self) -> list[str]:
        """Return the commands that made the results of this graph's jobs, in their order, as a user would write them.

        All jobs must be finished.
        """
        return [self.shown(_read(self._record(job)).command) for job in self.jobs]

    # --- one job: seen, begun, ended ----------------------------------------------------------------------------------

    def look(self, job: Job) -> Look:
        """See whether a job's results are up to date. Those of the jobs that it needs must be known."""
        command = [self.resolve(word.replace(OUT, str(self.outdir))) for word in job.command]
        portable = tuple(map(self._portable, command))
        inputs = dict.fromkeys(self.resolve(str(path)) for path in job.inputs)
        inputs |= dict.fromkeys(str(self._results[name][index]) for name, index in job.needs)
        described = [describe_input(Path(path)) for path in inputs]
        wanted = fingerprint([self.programs.sources_of(command), portable, *described])
        command = [word.replace(FINGERPRINT, wanted[:_SHORT]) for word in command]
        patterns = tuple(pattern.replace(FINGERPRINT, wanted[:_SHORT]) for pattern in job.outputs)
        last = _read(self._record(job)) if self._record(job).exists() else None
        results, ended = None, False
        if last is not None and last.wanted == wanted:
            if last.results is not None:
                results = last.results if self._as_they_were(last.results) else None
            elif not job.continues:
                results = self._new_results(patterns, last.before or {})
                ended = results is not None
        return Look(job, wanted, portable, tuple(command), patterns, last, results, ended)

    def begin(self, look: Look) -> list[str]:
        """Note that a job begins. Returns its command."""
        if look.job.replaces and look.last is None:
            self._refuse([path for pattern in look.patterns for path in self._matches(pattern)])
        begun = look.last is not None and look.last.results is None and look.last.wanted == look.wanted
        before = look.last.before if begun and look.last is not None else self._made(look.patterns)
        self._write(look, Record(False, look.wanted, look.portable, before=before or None))
        return [*look.command, *["--force"] * (look.job.replaces and look.last is not None)]

    def end(self, look: Look, seconds: float | None, patience: float = 0) -> None:
        """Note that a job's command has ended without an error.

        seconds: that it took, if known. patience: seconds in which its files may still appear.
        Raises Failure if a file lacks.
        """
        until = time.monotonic() + patience
        while lacking := [pattern for pattern in look.patterns if not self._matches(pattern)]:
            if time.monotonic() > until:
                raise Failure(f"{look.job.name} ended without an error, but {self.outdir} holds no {lacking[0]}")
            time.sleep(1)
        made, job = self._made(look.patterns), look.job
        record = Record(True, look.wanted, look.portable, made, None, seconds, job.kind or job.name, float(job.work))
        self._write(look, record)
        self._finish(look, made)

    def fail(self, look: Look) -> None:
        """Note that a job's command has failed: what it made does not count as its results."""
        self._write(look, Record(False, look.wanted, look.portable, before=self._made(look.patterns) or None))

    def accept(self, look: Look) -> None:
        """Take the results of a look, which are up to date."""
        assert look.results is not None
        if look.ended:
            self.end(look, None)
        else:
            self._finish(look, look.results)

    def shown(self, command: Sequence[str]) -> str:
        """Return a job's command as a user would write it."""
        return "python " + shlex.join(command)

    def _finish(self, look: Look, results: Mapping[str, str]) -> None:
        assert len(results) == len(look.patterns), f"{look.job.name}: several patterns match one file"
        self._results[look.job.name] = [self.outdir / name for name in results]

    def _write(self, look: Look, record: Record) -> None:
        make_folder(self.folder)
        write_json(self._record(look.job), record)

    def _record(self, job: Job) -> Path:
        """File of a job's record."""
        return self.folder / f"{job.name}.json"

    def _portable(self, word: str) -> str:
        """Put OUT instead of the output folder, which may move, or be spelled in another way, into a word."""
        return re.sub(rf"(?<![\w./-]){re.escape(str(self.outdir))}(?=/|$)", OUT, word)

    def _foreseen(self, job: Job) -> list[str]:
        """A job's command before its inputs are there: with patterns instead of results that are not known yet."""
        outputs = {job.name: job.outputs for job in self.jobs}

        def path(match: re.Match) -> str:
            known = self._results.get(match[1])
            return str(known[int(match[2])] if known else self.outdir / outputs[match[1]][int(match[2])])

        return [_RESULT.sub(path, w.replace(OUT, str(self.outdir))).replace(FINGERPRINT, "*") for w in job.command]

    def _as_they_were(self, results: Mapping[str, str]) -> bool:
        """Return whether results are still as their job left them."""
        paths = {self.outdir / name: was for name, was in results.items()}
        return all(path.exists() and fingerprint(describe_input(path)) == was for path, was in paths.items())

    def _made(self, patterns: Sequence[str]) -> dict[str, str]:
        """Outputs that are there: path below the output folder -> fingerprint."""
        found = [matches[-1] for pattern in patterns if (matches := self._matches(pattern))]
        return {str(path.relative_to(self.outdir)): fingerprint(describe_input(path)) for path in found}

    def _new_results(self, patterns: Sequence[str], before: Mapping[str, str]) -> dict[str, str] | None:
        """Return results of a command that has ended, as outputs appear only when they are complete. None: it has not.

        before: outputs that were there when it began.
        """
        made = self._made(patterns)
        # The description of a folder changes when it is copied, so it can't tell that an old one is new.
        new = all(
            name not in before or (was != before[name] and (self.outdir / name).is_file()) for name, was in made.items()
        )
        return made if new and all(map(self._matches, patterns)) else None

    def _refuse(self, strangers: Sequence[Path]) -> None:
        """Raise UserError if there are strangers: files that may not be replaced, as no job has made them."""
        if strangers:
            raise UserError(f"{strangers[0]} exists already, but not from this job: choose another --outdir")

    def _matches(self, pattern: str) -> list[Path]:
        """Files in the output folder that match a pattern, in order of their names."""
        return sorted(self.outdir.glob(pattern))


@contextlib.contextmanager
def held(outdir: Path) -> Iterator[int]:
    """Lock an output folder, so that a second call can't write among the files of this one. Yields the open lock.

    Jobs inherit it, and keep it even if this process is killed. Raises UserError if another process holds it.
    """
    busy = f"{outdir}: another call, or a job that it started, is at work there; wait for it"
    with hold(make_folder(outdir / "jobs") / "lock", busy) as lock:
        yield lock


def _read(path: Path) -> Record:
    """Read a record."""
    return from_json(Record, read_json(path), str(path))


def _edges(jobs: Sequence[Job]) -> dict[str, set[str]]:
    """Return, for each job, the names of those whose results it reads. Raises ValueError; see Graph."""
    named = {job.name: job for job in jobs}
    if len(named) < len(jobs):
        raise ValueError(f"two jobs have one name: {sorted(job.name for job in jobs)}")
    for job in jobs:
        if not _NAME.fullmatch(job.name):
            raise ValueError(f"{job.name!r} is no name of a file")
        for name, index in job.needs:
            if name not in named or index >= len(named[name].outputs):
                raise ValueError(f"{job.name} needs result {index} of {name}, which is not there")
    edges = {job.name: {name for name, _ in job.needs} for job in jobs}
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        raise ValueError(f"jobs need each other's results in a circle: {' <- '.join(error.args[1])}") from None
    return edges

"""Plan of a graph of jobs: what is to do, in which order, and how long it will take, judged by finished jobs."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dnnlib.slots import Slots
from dnnlib.text import count, format_table, name_some

if TYPE_CHECKING:
    from dnnlib.jobs import Job
    from dnnlib.records import Record


def kind_of(job: Job) -> str:
    """Kind of a job, for the estimate."""
    return job.kind or job.name


def next_job(
    waiting: Iterable[Job],
    edges: Mapping[str, Collection[str]],
    finished: Collection[str],
) -> Job | None:
    """Return the first waiting job whose inputs are there. edges: name -> names of jobs that must be finished."""
    return next((job for job in waiting if all(name in finished for name in edges[job.name])), None)


def has_room(job: Job, running: Collection[Job], slots: Slots) -> bool:
    """Return whether a job may start beside those that run. One that runs alone has no other beside it."""
    alone = not slots.launcher and any(one.alone for one in (job, *running))
    return not running if alone else len(running) < slots.number


@dataclass(frozen=True)
class Pace:
    """How long jobs take: seconds for a unit of work, by kind."""

    seconds: Mapping[str, float]
    jobs: int  # finished ones that it was learned from

    @classmethod
    def of(cls, records: Iterable[Record]) -> Pace:
        """Learn from records of jobs: the sum of seconds over the sum of work."""
        took: Counter[str] = Counter()
        worked: Counter[str] = Counter()
        jobs = 0
        for record in records:
            if record.complete and record.seconds is not None and record.work > 0:
                took[record.kind] += record.seconds  # type: ignore[assignment]
                worked[record.kind] += record.work  # type: ignore[assignment]
                jobs += 1
        return cls({kind: took[kind] / worked[kind] for kind in took}, jobs)

    def of_job(self, job: Job) -> float | None:
        """Return the seconds that a job will take. None: no job of its kind has finished."""
        rate = self.seconds.get(kind_of(job))
        return None if rate is None else rate * job.work


@dataclass(frozen=True)
class Estimate:
    """Time that jobs will take."""

    seconds: float  # of those whose kind is known
    pace: Pace
    slots: Slots
    unknown: Sequence[str]  # kinds of which no job has finished, so that theirs are not included

    def __str__(self) -> str:
        if not self.pace.jobs:
            return "not known yet: no job has finished"
        judged = f"{count(self.pace.jobs, 'finished job')} of {count(len(self.pace.seconds), 'kind')}"
        lacking = f"; not included, as none has finished: {name_some(self.unknown)}" if self.unknown else ""
        return f"about {about(self.seconds)} on {self.slots}, judged by {judged}{lacking}"


def time_for(
    jobs: Sequence[Job],
    edges: Mapping[str, Collection[str]],
    pace: Pace,
    slots: Slots,
    since: Mapping[str, float] | None = None,
) -> Estimate:
    """Foretell how long jobs will take: start them as `Pool` does, each for the seconds that its kind has taken.

    edges: needs that are not among `jobs` are finished. since: name of a job at work -> seconds that it has taken.
    """
    since = since or {}
    names = {job.name for job in jobs}
    left = {job.name: set(edges[job.name]) & names for job in jobs}
    waiting = sorted(jobs, key=lambda job: job.name not in since)  # those at work first; the order is kept otherwise
    finished: set[str] = set()
    running: list[tuple[float, str, Job]] = []  # a heap: when it ends
    now = 0.0
    while waiting or running:
        job = next_job(waiting, left, finished)
        if job is not None and has_room(job, [one for *_, one in running], slots):
            seconds = max(0.0, (pace.of_job(job) or 0.0) - since.get(job.name, 0.0))
            heapq.heappush(running, (now + seconds, job.name, job))
            waiting.remove(job)
        else:
            now, name, _ = heapq.heappop(running)
            finished.add(name)
    unknown = dict.fromkeys(kind_of(job) for job in jobs if pace.of_job(job) is None)
    return Estimate(now, pace, slots, tuple(unknown))


@dataclass(frozen=True)
class Plan:
    """What a graph would do."""

    jobs: Sequence[Job]  # all
    commands: Mapping[str, str]  # name of a job to do -> its command; patterns stand for results that are not there yet
    estimate: Estimate

    @property
    def todo(self) -> list[Job]:
        """Jobs that will run, unless it shows that their inputs are the same again."""
        return [job for job in self.jobs if job.name in self.commands]

    def __str__(self) -> str:
        todo = self.todo
        all_kinds, left = (Counter(map(kind_of, jobs)) for jobs in (self.jobs, todo))
        rows = [(kind, number - left[kind], left[kind]) for kind, number in all_kinds.items()]
        rows.append(("all", len(self.jobs) - len(todo), len(todo)))
        lines = [format_table(("jobs", "done", "to do"), rows)]
        lines.append(f"\nTime: {self.estimate}" if todo else "\nNothing is to do")
        for job in todo:
            lines += [f"\n{job.name}: {job.purpose}", f"    $ {self.commands[job.name]}"]
        return "\n".join(lines)


def about(seconds: float) -> str:
    """Format a duration that is not known exactly, as in '12s', '7m', '1h 20m', '2d 03h'."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    m = round(s / 60)
    if m < 60:
        return f"{m}m"
    if m < 1440:
        return f"{m // 60}h {m % 60:02d}m"
    return f"{m // 1440}d {m // 60 % 24:02d}h"

"""Pool of jobs at work: several at once, with one line on the terminal at the start and the end of each."""

from __future__ import annotations

import contextlib
import math
import multiprocessing.connection
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tqdm import tqdm

from dnnlib import commands
from dnnlib.commands import Command
from dnnlib.plan import Pace, about, has_room, next_job, time_for
from dnnlib.processes import exit_status
from dnnlib.slots import Slots
from dnnlib.system import PLAIN
from dnnlib.text import count, format_time, name_some

if TYPE_CHECKING:
    from dnnlib.jobs import Graph, Job, Look

_ENDED = (129, 130, 143)  # exit statuses of a command that SIGHUP, Ctrl-C or SIGTERM ended
_KILLED = 137  # SIGKILL, from a user, or from the system when memory runs out
_DONE = "done before with these options, inputs and sources"
_ENDED_UNSEEN = "had ended before, with these options, inputs and sources"
_TICK = 0.2  # seconds between looks at signals
_LATEST = 5  # seconds after which the words beside the progress bar are made again
_QUIET = 60  # seconds after which a line says what is at work, where there is no progress bar
_LAG = 60  # seconds until what another machine wrote is seen on a network file system
_TAIL = 15  # lines of a failed job's log that are shown


@dataclass
class _Running:
    """A job at work."""

    look: Look
    slot: int
    start: float  # time.monotonic()
    log: Path | None  # file with its output; None: the terminal shows it
    begins: int  # bytes of the log that are of earlier runs
    told: bool = False  # whether it got the signal that this process got


class Pool:
    """Runs the jobs of a graph in slots."""

    def __init__(self, graph: Graph, slots: Slots, lock: int) -> None:
        self._graph, self._slots, self._lock = graph, slots, lock
        self._waiting = list(graph.jobs)
        self._finished: set[str] = set()  # names
        self._looks: dict[str, Look] = {}  # of jobs that wait for room
        self._running: dict[Command, _Running] = {}
        self._asked: list[int] = []  # signals that came, in order
        self._stopped: list[Job] = []  # by such a signal
        self._deadline = math.inf  # time.monotonic() at which jobs that were asked to end are killed
        self._failure: SystemExit | Exception | None = None  # the first
        self._screen = _Screen(len(graph.jobs), shared=slots.number > 1)

    def run(self) -> None:
        """Run all jobs. Exits, or raises an exception, if one failed or a signal came."""
        with self._listening():
            try:
                while True:
                    while not self._stopping and self._start_next():
                        pass
                    if not self._running:
                        break
                    self._watch()
            finally:
                for command in self._running:  # none, unless an error leaves this block
                    command.leave()
                self._screen.close()
        if self._asked:
            self._tell_of_stop()
            sys.exit(exit_status(self._asked[0]))
        if self._failure is not None:
            raise self._failure

    @property
    def _stopping(self) -> bool:
        return bool(self._asked) or self._failure is not None

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Take note of signals that ask this process to end. Those that are ignored stay so: nohup ignores SIGHUP."""
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        taken = [signum for signum in signals if signal.getsignal(signum) is not signal.SIG_IGN]
        before = {signum: signal.signal(signum, lambda number, _: self._asked.append(number)) for signum in taken}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    # --- start --------------------------------------------------------------------------------------------------------

    def _start_next(self) -> bool:
        """Start the next job, or skip it if its results are up to date. Returns False if it must wait."""
        job = next_job(self._waiting, self._graph.edges, self._finished)
        if job is None:
            return False
        try:
            look = self._looks.get(job.name) or self._graph.look(job)
            self._looks[job.name] = look
            if look.results is not None:
                self._graph.accept(look)
                self._waiting.remove(job)
                self._finished.add(job.name)
                self._screen.skipped(len(self._finished), look)
                return True
            if not has_room(job, [one.look.job for one in self._running.values()], self._slots):
                return False
            self._start(look)
        except Exception as error:
            self._tell_of_waiting()
            self._failure = error
            return False
        self._waiting.remove(job)
        return True

    def _start(self, look: Look) -> None:
        """Start a job's command in a free slot."""
        job, slots = look.job, self._slots
        slot = min(set(range(slots.number)) - {running.slot for running in self._running.values()})
        alone = slots.number == 1 or (job.alone and not slots.launcher)
        log = None if alone else self._graph.folder / f"{job.name}.txt"
        words = self._graph.begin(look)
        shown = self._graph.shown(words)
        self._screen.begun(look, shown, slots.place(slot, job.alone), log)
        environment = {**self._graph.programs.environment, **slots.environment(slot, job.alone)}
        with contextlib.ExitStack() as opened:
            file: IO[bytes] | None = opened.enter_context(open(log, "ab")) if log else None
            begins = 0
            if file:
                file.write(f"$ {shown}\n".encode("utf-8", PLAIN))
                file.flush()
                begins = file.tell()
            words = [*slots.launcher, *self._graph.programs.words(words)]
            command = Command(words, environment, file, [self._lock])
        self._running[command] = _Running(look, slot, time.monotonic(), log, begins)

    # --- watch --------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Wait a moment for jobs to end, and pass signals on."""
        ready: list[Any] = multiprocessing.connection.wait(list[Any](self._running), _TICK)
        for command in ready:
            status = command.poll()
            if status is not None:
                self._end(self._running.pop(command), status)
        self._pass_on()
        self._screen.tick(self._describe)

    def _pass_on(self) -> None:
        """Pass a signal on once. At a second one, or if jobs do not end in time, kill them."""
        if not self._asked:
            return
        signum = self._asked[0]
        if self._deadline == math.inf and signum != signal.SIGINT:
            self._deadline = time.monotonic() + commands.GRACE
        # Trainings know SIGTERM, not SIGHUP. srun answers Ctrl-C with a question.
        passed = signum if signum == signal.SIGINT and not self._slots.launcher else signal.SIGTERM
        if self._running and not any(running.told for running in self._running.values()):
            self._screen.stopping(signal.Signals(signum).name, len(self._running))
        for command, running in self._running.items():
            if not running.told:
                command.send(passed)
                running.told = True
            if len(self._asked) > 1 or time.monotonic() > self._deadline:
                command.kill()

    def _end(self, running: _Running, status: int) -> None:
        """Note that a job has ended, and how."""
        seconds, look = time.monotonic() - running.start, running.look
        try:
            # After a signal, status 0 may also mean that a command obeyed. The next call sees whether it was done.
            if status == 0 and not running.told:
                self._graph.end(look, seconds, _LAG if self._slots.launcher else 0)
                self._finished.add(look.job.name)
                self._screen.ended(len(self._finished), look, seconds)
                return
            if status < 128 and not running.told:
                self._graph.fail(look)
        except Exception as error:
            self._failure = self._failure or error
            return
        if running.told:
            self._stopped.append(look.job)
            return
        self._tell_of_failure(running, status)
        self._tell_of_waiting()
        self._failure = self._failure or SystemExit(status if status in _ENDED or status == 2 else 1)

    def _tell_of_failure(self, running: _Running, status: int) -> None:
        """Print why a job ended early, the end of its log, and what goes on."""
        lines = [f"    {line}" for line in _last_lines(running.log, running.begins)] if running.log else []
        why = " (killed, most likely for lack of memory)" if status == _KILLED else ""
        advice = _how_to_go_on([running.look.job]) if status >= 128 else ""
        log = f"; all its output is in {running.log}" if running.log else ""
        lines.append(f"\n{running.look.job.name} ended early{why}{log}{advice}")
        self._screen.say("\n".join(lines), file=sys.stderr)

    def _tell_of_waiting(self) -> None:
        """Print, at the first failure, that the other jobs at work may finish."""
        if self._running and not self._stopping:
            jobs = count(len(self._running), "job")
            self._screen.say(f"no other job is started; waiting for {jobs} at work", file=sys.stderr)

    def _tell_of_stop(self) -> None:
        """Print which jobs a signal has stopped."""
        if self._stopped:
            names = name_some([job.name for job in self._stopped])
            self._screen.say(f"\n{names} ended early{_how_to_go_on(self._stopped)}", file=sys.stderr)

    def _describe(self) -> str:
        """Say what is at work, and how long the rest will take."""
        now = time.monotonic()
        since = {running.look.job.name: now - running.start for running in self._running.values()}
        left = [job for job in self._graph.jobs if job in self._waiting or job.name in since]
        pace = Pace.of(self._graph.records())
        estimate = time_for(left, self._graph.edges, pace, self._slots, since)
        rest = f"; about {about(estimate.seconds)} left" if pace.jobs and not estimate.unknown else ""
        names = [f"{name} ({format_time(seconds)})" for name, seconds in since.items()]
        return f"at work: {name_some(names)}{rest}"


def _how_to_go_on(jobs: Sequence[Job]) -> str:
    """Say what another call does with jobs that ended early."""
    which = "this one" if len(jobs) == 1 else "these"
    continues = [job.continues for job in jobs]
    if all(continues):
        does = f"continues {which}"
    elif any(continues):
        does = f"continues {which} or starts them again"
    else:
        does = f"starts {which} again"
    return f"; the same command skips finished jobs and {does}"


class _Screen:
    """Lines about jobs on the terminal, and one progress bar below them if several jobs run at once."""

    def __init__(self, total: int, shared: bool) -> None:
        """shared: several jobs may run at once, so their output goes to logs."""
        self._total, self._shared = total, shared
        form = "[{n_fmt}/{total_fmt}] |{bar}| {elapsed}{postfix}"
        hidden = not (shared and sys.stderr.isatty())
        self._bar = tqdm(total=total, leave=False, bar_format=form, disable=hidden)
        self._given_away = not shared  # whether a job writes to the terminal
        self._done_before = 0  # jobs that were skipped since the last line
        self._last = time.monotonic()  # of a line, or of a description beside the bar

    def say(self, line: str, file: IO[str] | None = None) -> None:
        """Print a line, above the bar if that is shown."""
        if self._done_before:
            number, self._done_before = self._done_before, 0
            self.say(f"{count(number, 'job')} {_DONE}")
        self._bar.set_postfix_str("", refresh=False)  # it may be wrong by now
        file = file or sys.stdout
        if self._given_away:
            print(line, file=file, flush=True)  # tqdm.write would show the bar again
        else:
            tqdm.write(line, file=file)
            file.flush()
        self._last = time.monotonic()

    def skipped(self, finished: int, look: Look) -> None:
        """Say that a job's results are up to date."""
        if self._shared:
            self._done_before += 1
        else:
            done = _ENDED_UNSEEN if look.ended else _DONE
            self.say(f"\n=== {look.job.name}: {look.job.purpose}\n    {done}")
        self._bar.update(finished - self._bar.n)

    def begun(self, look: Look, shown: str, place: str, log: Path | None) -> None:
        """Say that a job begins. log: None if its output goes to the terminal."""
        again = [f"{look.changed} changed since the last run: making them again"] * bool(look.changed)
        if log:
            where = [*[place] * bool(place), f"output in {log}"]
            self.say(f"{look.job.name}: {look.job.purpose} ({'; '.join([*where, *again])})")
        else:
            self._bar.clear()
            self._given_away = True
            lines = [f"\n=== {look.job.name}: {look.job.purpose}", *(f"    {line}" for line in again)]
            self.say("\n".join([*lines, f"    $ {shown}"]))

    def ended(self, finished: int, look: Look, seconds: float) -> None:
        """Say that a job has ended well."""
        if self._given_away:
            self.say(f"    took {format_time(seconds)}")
            self._given_away = not self._shared
        else:
            self.say(f"[{finished}/{self._total}] {look.job.name}: took {format_time(seconds)}")
        self._bar.update(finished - self._bar.n)

    def stopping(self, name: str, number: int) -> None:
        """Say that a signal was passed on."""
        if self._shared:
            self.say(f"{name}: {count(number, 'job')} at work must end; a second signal kills what has not")

    def tick(self, describe: Callable[[], str]) -> None:
        """Show that time goes on. describe: says what is at work."""
        late = time.monotonic() - self._last
        if self._given_away:
            return
        if self._bar.disable and late > _QUIET:
            self.say(describe())
        elif not self._bar.disable and late > _LATEST:
            self._bar.set_postfix_str(describe(), refresh=False)
            self._last = time.monotonic()
        self._bar.refresh()

    def close(self) -> None:
        """Remove the bar, and say what was not yet said."""
        self._bar.close()
        if self._done_before:
            self._done_before, number = 0, self._done_before
            self.say(f"{count(number, 'job')} {_DONE}")


def _last_lines(log: Path, begins: int) -> list[str]:
    """Return the last lines of a log from a byte on, without what a progress bar has written over."""
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(max(begins, os.fstat(file.fileno()).st_size - (1 << 16)))
        lines = file.read().decode("utf-8", "replace").split("\n")
        shown = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
        return [line for line in shown if line.strip()][-_TAIL:]
    return []

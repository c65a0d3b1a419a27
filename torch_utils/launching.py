"""The launcher: starts this program as several processes, called ranks, and watches over them. Imports torch late."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from dnnlib.errors import Failure, message_of
from dnnlib.failures import LAUNCHER, Launcher, Record, describe_exception, read_record
from dnnlib.processes import exit_status
from dnnlib.system import PLAIN
from torch_utils.stopping import STOP_SIGNALS, signals_handled

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_LOOPBACK = "127.0.0.1"
_GRACE = 5  # seconds that the others have once a rank has failed: in NCCL they may wait for it for ever
_POLL = 0.1  # seconds


def ranks_around() -> int | None:
    """Return the number of ranks of the run that this process belongs to, or None if it is no rank."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


def launch(processes: int) -> int:
    """Run the command line of this process as several ranks of one run on this machine. Returns the exit status.

    Torch's elastic launcher starts them, in the way of `torchrun`, over the loopback interface alone. A rank calls
    `torch_utils.distributed.joined`. SIGINT, SIGTERM and SIGUSR1 are passed on once, and ranks then take the time they
    need. A second Ctrl-C kills them. If a rank fails, the others have a few seconds; its message comes last, once.

    The exit status is that of the signal that stopped the ranks (130, 143, 138) or of the first rank that failed: 2 for
    a user's mistake, otherwise 1. Raises UserError if there are fewer GPUs than processes.
    """
    # No warnings of lost connections. The variable is read when torch is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with _signals_noted() as asked, tempfile.TemporaryDirectory(prefix="stylegan2-mr-ranks-") as folder:
        from torch_utils.distributed import refuse_too_many

        refuse_too_many(processes)
        ours = Launcher(os.getpid(), Path(folder))
        with _environment(ours), _logging_off():
            elastic, ranks = _Elastic(processes, ours.folder), _Ranks(processes, ours)
            elastic.start()
            _watch(elastic, ranks, asked)
        if signal.SIGINT in asked[1:]:
            if advice := _advice(ours):
                print(advice, file=sys.stderr)
            return exit_status(signal.SIGINT)
        return _tell(elastic.error, ranks.killed, asked, ours)


@contextlib.contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Note stop signals in the block. Yields the list of their numbers, which grows as they come."""
    asked: list[int] = []
    with signals_handled(lambda signum, _: asked.append(signum)):
        yield asked


@contextlib.contextmanager
def _environment(ours: Launcher) -> Iterator[None]:
    """Set what ranks inherit."""
    before = dict(os.environ)
    os.environ[LAUNCHER] = f"{ours.pid} {ours.folder}"
    # Otherwise gloo uses the interface of the machine's name, which may lead nowhere or to the world.
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == _LOOPBACK for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _logging_off() -> Iterator[None]:
    """Silence elastic, which writes 40 lines about a failure."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


class _Elastic(threading.Thread):
    """Torch's elastic launcher. In a thread of its own it leaves the handlers of signals alone."""

    def __init__(self, processes: int, folder: Path) -> None:
        super().__init__(daemon=True)
        self.processes, self.folder = processes, folder
        self.error: Exception | None = None  # that ended it; a ChildFailedError if ranks failed

    def run(self) -> None:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        # Ranks inherit the mask. Until `joined` lifts it, signals wait: Python would print a traceback at Ctrl-C.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.processes,
            run_id=f"stylegan2-mr-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint=f"{_LOOPBACK}:0",
            rdzv_configs={"is_host": True},
            local_addr=_LOOPBACK,
            max_restarts=0,
            monitor_interval=_POLL,
            logs_specs=DefaultLogsSpecs(log_dir=str(self.folder)),
        )
        try:
            # Elastic reads $ as the start of a variable.
            elastic_launch(config, sys.executable)(*(word.replace("$", "$$") for word in sys.orig_argv[1:]))
        except Exception as error:
            self.error = error


class _Ranks:
    """The ranks as processes. They are children of this process, and each is the head of a process group."""

    def __init__(self, number: int, ours: Launcher) -> None:
        self.number, self.ours = number, ours
        self.processes: list[psutil.Process] = []  # all that have been seen
        self.killed: set[int] = set()  # ids of those that this launcher has killed

    def look(self) -> None:
        """See which ranks have been started."""
        if len(self.processes) < self.number:
            self.processes += [child for child in psutil.Process().children() if child not in self.processes]

    @property
    def complete(self) -> bool:
        """Whether all ranks have been started."""
        return len(self.processes) == self.number

    def one_has_failed(self) -> bool:
        """Return whether a rank is gone that has not left in good order."""
        return any(not _runs(process) and not self.ours.leaver(process.pid).exists() for process in self.processes)

    def send(self, signum: int) -> None:
        """Send a signal to all ranks."""
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signum)

    def kill(self) -> None:
        """Kill all ranks, and all processes that they have started."""
        self.killed |= {process.pid for process in self.processes if _runs(process)}
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def _runs(process: psutil.Process) -> bool:
    """Return whether a process has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _watch(elastic: _Elastic, ranks: _Ranks, asked: Sequence[int]) -> None:
    """Pass on signals until elastic has seen the end of all ranks, and hurry that end after a failure."""
    passed_on, deadline = False, float("inf")
    while elastic.is_alive():
        elastic.join(_POLL)
        ranks.look()
        if asked and not passed_on and ranks.complete:
            ranks.ours.passes_on.touch()
            ranks.send(asked[0])
            passed_on = True
        if deadline == float("inf") and ranks.one_has_failed():
            deadline = time.monotonic() + _GRACE
        if signal.SIGINT in asked[1:]:
            break
        if time.monotonic() > deadline:
            ranks.kill()
    if elastic.error is not None or elastic.is_alive():
        ranks.kill()  # and what processes failed ranks have left behind
        elastic.join(_GRACE)


def _tell(error: Exception | None, killed: set[int], asked: Sequence[int], ours: Launcher) -> int:
    """Print the first failure, if there is any. Returns the exit status.

    error: the exception that ended elastic. killed: ids of the ranks that this launcher killed after a failure.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if error is None:
        return 0
    if not isinstance(error, ChildFailedError):
        print(message_of(Failure(f"the ranks could not be started ({describe_exception(error)})")), file=sys.stderr)
        return 1
    failures = {rank: failure for rank, failure in error.failures.items() if failure.pid not in killed}
    orderly = [f.exitcode for f in failures.values() if f.exitcode in map(exit_status, STOP_SIGNALS)]
    records = {_record(rank, f): f for rank, f in failures.items() if f.exitcode not in orderly}
    # First those that tell the cause.
    first = min(records, key=lambda record: (record.consequence, record.time), default=None)
    if first is None or first.consequence:
        if asked:
            return exit_status(asked[0])
        if orderly:
            return orderly[0]
    if first is None:
        print(message_of(Failure("a rank left the others behind, without a word")), file=sys.stderr)
        return 1
    if read_record(records[first].error_file_data) is None:
        _add_to_log(ours, first.message)
    print(first._replace(advice=first.advice or _advice(ours)).told, file=sys.stderr)
    return first.status


def _add_to_log(ours: Launcher, message: str) -> None:
    """Add what killed a rank to the run's log, as it could not do so itself. Does nothing if there is no log yet."""
    with contextlib.suppress(OSError):
        path = os.fsdecode(ours.log.read_bytes())
        with open(path, "a", encoding="utf-8", errors=PLAIN) as file:
            file.write(f"error: {message}\n")


def _advice(ours: Launcher) -> str:
    """Return what rank 0 has left to say how to go on, or nothing."""
    with contextlib.suppress(OSError):
        return ours.advice.read_text(encoding="utf-8", errors=PLAIN)
    return ""


def _record(rank: int, failure: ProcessFailure) -> Record:
    """Return a rank's record, or make one for a rank that left none."""
    if record := read_record(failure.error_file_data):
        return record if record.status == 2 else record._replace(message=f"rank {rank}: {record.message}")
    ended_by = -failure.exitcode
    if ended_by == signal.SIGKILL:
        message = f"rank {rank} was killed (SIGKILL), most likely for lack of memory"
    elif ended_by > 0:
        message = f"rank {rank} was ended by a signal ({failure.signal_name()})"
    else:
        message = f"rank {rank} ended with exit status {failure.exitcode}"
    # Elastic itself sends SIGTERM to the others when a rank has failed, and NCCL aborts when it has lost one.
    consequence = ended_by in (*STOP_SIGNALS, signal.SIGABRT)
    return Record(message, 2 if failure.exitcode == 2 else 1, "", "", consequence, failure.timestamp)

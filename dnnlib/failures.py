"""What a process leaves of its failure: a traceback in the log, and a record for the launcher of ranks."""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dnnlib.errors import Failure, as_failure, message_of
from dnnlib.system import PLAIN

# Set by our launcher for its ranks: its process id, and the folder in which ranks leave files for it.
LAUNCHER = "STYLEGAN2_MR_LAUNCHER"
_RECORD = "TORCHELASTIC_ERROR_FILE"  # set by torch's elastic launcher, ours or torchrun: path of a rank's record


class Launcher(NamedTuple):
    """The process of ours that started this rank."""

    pid: int
    folder: Path  # temporary; the launcher removes it

    @property
    def advice(self) -> Path:
        """File that says how to go on after a failure. Rank 0 writes it, as a killed rank can't tell."""
        return self.folder / "advice"

    @property
    def log(self) -> Path:
        """File with the path of the run's log, to which the launcher adds the end of a killed rank."""
        return self.folder / "log"

    @property
    def passes_on(self) -> Path:
        """File that is there once the launcher passes a signal on. Before that, SIGTERM only follows a failure."""
        return self.folder / "passes-on"

    def leaver(self, pid: int) -> Path:
        """Return the file of a rank that has left in good order."""
        return self.folder / f"left-{pid}"


def launcher() -> Launcher | None:
    """Return the launcher of this rank. None if there is none, or if it is not ours, as under `torchrun`."""
    pid, _, folder = os.environ.get(LAUNCHER, "").partition(" ")
    return Launcher(int(pid), Path(folder)) if pid else None


class LostPeer(Failure):
    """A failure that only follows from another rank's."""


@contextlib.contextmanager
def failure_log(path: Path, advice: str) -> Iterator[None]:
    """Append the traceback of an exception that leaves the block to a file, and turn it into a Failure with the advice.

    Of a user's mistake, the message alone. If this process is killed in the block, its launcher gives the advice.
    """
    if (ours := launcher()) and os.environ.get("RANK") == "0":
        ours.advice.write_text(advice, encoding="utf-8", errors=PLAIN)
        ours.log.write_bytes(os.fsencode(path.absolute()))
    try:
        yield
    except Exception as error:
        failure = as_failure(error)
        if failure is None:
            failure = Failure(f"{describe_exception(error)} (more in {path})")
        failure.advice = failure.advice or advice
        if not isinstance(failure, LostPeer):
            told = [f"error: {failure}\n"] if failure.status == 2 else traceback.format_exception(error)
            with contextlib.suppress(OSError), open(path, "a", encoding="utf-8", errors=PLAIN) as file:
                file.write("".join(told))
        raise failure from (None if failure is error else error)


def describe_exception(error: BaseException) -> str:
    """Return the type of an exception and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class Record(NamedTuple):
    """A rank's account of its failure."""

    message: str
    status: int  # exit status
    advice: str  # "" if there is none
    traceback: str  # "" if the log has it, or none is needed
    consequence: bool  # whether it only follows from another rank's failure
    time: float  # seconds since the epoch

    @property
    def told(self) -> str:
        """What the terminal shows."""
        return self.traceback + message_of(Failure(self.message, advice=self.advice))


def record_of(error: Exception) -> Record:
    """Give an account of an exception that ends this rank."""
    failure = as_failure(error)
    told = "" if failure else "".join(traceback.format_exception(error))
    failure = failure or Failure(describe_exception(error))
    return Record(str(failure), failure.status, failure.advice, told, isinstance(failure, LostPeer), time.time())


def leave_record(record: Record) -> None:
    """Write a record where the launcher of ranks looks for it, in the format of torch.distributed.elastic.

    So `torchrun` shows the message as well.
    """
    if not (path := os.environ.get(_RECORD)):
        return
    shown = record.traceback or "\n".join(filter(None, [record.message, record.advice]))
    extra = {"py_callstack": shown, "timestamp": str(int(record.time)), "stylegan2_mr": record._asdict()}
    with contextlib.suppress(OSError), open(path, "w", encoding="utf-8", errors=PLAIN) as file:
        json.dump({"message": {"message": record.message, "extraInfo": extra, "errorCode": record.status}}, file)


def read_record(data: Any) -> Record | None:
    """Read the record out of what elastic makes of a rank's file. None if the rank left none."""
    try:
        return Record(**data["message"]["extraInfo"]["stylegan2_mr"])
    except (TypeError, KeyError):
        return None

"""Commands that end with this process: each below a guard, which stops it even if this process is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from dnnlib.processes import exit_status

GRACE = 40  # seconds from SIGTERM to SIGKILL; a training ends its step and saves its state
_GUARD = Path(__file__).with_name("guard.py")


class Command:
    """A command that runs, in a process group of its own, so that a Ctrl-C at the terminal does not reach it.

    It ends together with this process; see guard.py. `select.select` takes it, and reports when it may have ended.
    """

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        log: IO[bytes] | None = None,  # for its output; by default, that goes where this process's own does
        keep: Sequence[int] = (),  # open files that the command and its guard inherit, such as a lock
    ) -> None:
        self._control, theirs = socket.socketpair()
        guard = [sys.executable, "-I", "-S", str(_GUARD), str(theirs.fileno()), str(GRACE)]
        self._process = subprocess.Popen(
            [*guard, *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[theirs.fileno(), *keep],
            start_new_session=True,
        )
        theirs.close()
        self._status: int | None = None

    def fileno(self) -> int:
        """Return the file that is readable when the command may have ended."""
        return self._control.fileno()

    def send(self, signum: int) -> None:
        """Send a signal to the command, but not to processes that it started: it passes on what they need to know."""
        with contextlib.suppress(OSError):  # it has ended
            self._control.send(bytes([signum]))

    def kill(self) -> None:
        """Kill the command with all that it started."""
        self.send(signal.SIGKILL)

    def leave(self) -> None:
        """End the command as if this process had ended: with SIGTERM, and GRACE later by force."""
        self._control.close()

    def poll(self) -> int | None:
        """Return the exit status as a shell reports it, or None if the command, or one that it left, still runs.

        Blocks until the file of `fileno` is readable.
        """
        try:
            status = self._control.recv(1)
        except ConnectionResetError:  # the guard was killed before it read a signal
            status = b""
        if status:
            self._status = status[0]
            return None
        with contextlib.suppress(ProcessLookupError):  # nothing is left, unless somebody killed the guard
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._control.close()
        return exit_status(signal.SIGKILL) if self._status is None else self._status

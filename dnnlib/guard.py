"""Guard of one command: a process of its own that ends the command, with all that it started, when its parent ends.

python -I -S guard.py CONTROL GRACE COMMAND …

`dnnlib.commands.Command` starts it as the first process of a new process group, which the command and its children
share. CONTROL is one end of a socket pair. A byte that arrives there is a signal for the command; SIGKILL is for all
processes. The end of the stream means that the parent has ended, if only by SIGKILL: the command then gets SIGTERM.
When the command has ended, one byte with its exit status goes back, and processes that it left get SIGTERM. What still
lives GRACE seconds after a SIGTERM of the guard's own is killed. On Linux, the guard adopts orphans, so it also finds
those that have left the group. This file imports nothing of the project, so it starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import select
import signal
import socket
import sys
import time

_PDEATHSIG, _SUBREAPER = 1, 36  # what Linux's prctl can be asked: a signal at the parent's death; to adopt orphans
_AGAIN = 0.05  # seconds until those are looked for that have become this process's children by a kill
_MEANT_FOR_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what the command shall get comes by the socket


def main() -> None:
    """Start the command, and wait for its end and for bytes of the parent."""
    control, grace, command = socket.socket(fileno=int(sys.argv[1])), float(sys.argv[2]), sys.argv[3:]
    control.set_inheritable(False)
    # A child's end writes a byte there, which ends a `select`. Neither end outlives an exec.
    wakes, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in _MEANT_FOR_PARENT}
    _prctl(_SUBREAPER, 1)
    child: int | None = _start(command, before)
    watched: list = [control, wakes]
    deadline = math.inf  # from when on all are killed
    while True:
        status, left = _reap(child)
        if status is not None:
            child, deadline = None, min(deadline, time.monotonic() + grace)
            with contextlib.suppress(OSError):  # the parent has ended
                control.send(bytes([status]))
            _end_others(signal.SIGTERM)
        if not left:
            return
        if time.monotonic() >= deadline:
            _end_others(signal.SIGKILL)
        timeout = None if deadline == math.inf else max(_AGAIN, deadline - time.monotonic())
        ready = select.select(watched, [], [], timeout)[0]
        if wakes in ready:
            os.read(wakes, 4096)
        if control in ready:
            asked = _receive(control)
            if not asked:
                watched.remove(control)
                deadline = min(deadline, time.monotonic() + grace)
            if asked == signal.SIGKILL:
                deadline = 0
            elif child is not None:
                os.kill(child, asked or signal.SIGTERM)


def _start(command: list[str], handlers: dict) -> int:
    """Start the command with these handlers of signals. Returns its process id."""
    guard = os.getpid()
    if child := os.fork():
        return child
    for signum, handler in handlers.items():  # one that ignores a signal, as below nohup, lives on in the command
        signal.signal(signum, handler)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it
    _prctl(_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == guard:  # otherwise the guard ended before the request above
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"error: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


def _reap(child: int | None) -> tuple[int | None, bool]:
    """Collect children that have ended. Returns the exit status of `child` if it has, and whether others are left."""
    status = None
    while True:
        try:
            pid, state = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status, False
        if not pid:
            return status, True
        if pid == child:
            code = os.waitstatus_to_exitcode(state)
            status = code if code >= 0 else 128 - code  # as a shell reports it


def _end_others(signum: int) -> None:
    """Send a signal to the other processes of the group, and to the children of this one."""
    children = _children()
    if signum != signal.SIGKILL:
        os.killpg(0, signum)  # this process ignores it
    elif not children:  # not on Linux
        os.killpg(0, signal.SIGKILL)  # this process too
    for pid in children:  # theirs become this process's own when they end
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def _children() -> list[int]:
    """Process ids of this process's children, among them adopted ones. Linux knows them."""
    found = []
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError, ValueError):
            with open(f"/proc/{int(name)}/stat", "rb") as file:
                # After the name, which is in parentheses and may hold any character: state and parent.
                _, parent = file.read().rpartition(b")")[2].split()[:2]
            if int(parent) == os.getpid():
                found.append(int(name))
    return found


def _receive(control: socket.socket) -> int:
    """Return the signal that the parent asks for, or 0 at the parent's end."""
    try:
        return (control.recv(1) or b"\0")[0]
    except OSError:
        return 0


def _prctl(option: int, value: int) -> None:
    """Ask Linux for something. Other systems lack it: there, only the parent's end is noticed, and no orphans."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


if __name__ == "__main__":
    main()

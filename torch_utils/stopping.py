"""Signals that ask a run to stop: Ctrl-C (SIGINT), and SIGTERM and SIGUSR1 of job schedulers. Imports no torch."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from dnnlib.failures import launcher
from dnnlib.processes import exit_status

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether this process has been asked to stop."""

    asked: int = 0  # number of the first signal that came; 0 if none has


@contextlib.contextmanager
def stop_signals(on_first: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turn stop signals in the block into a request, so that a loop can finish its step and save.

    on_first: is called with the name of the first signal, for example "SIGTERM", while the signal is handled.
    A Ctrl-C after that raises KeyboardInterrupt; other signals after the first do nothing. In a rank that our launcher
    started, Ctrl-C does nothing either: the launcher ends the ranks at the second. There, SIGTERM counts only if the
    launcher passes it on; elastic sends it when another rank has failed. Signals that were ignored before stay ignored,
    as nohup asks. Call it in the main thread.
    """
    request, ours = StopRequest(), launcher()

    def take(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGTERM and ours is not None and not ours.passes_on.exists():
            return
        if not request.asked:
            request.asked = signum
            # Python refuses to print in the middle of another print to the same file. The message is no great loss.
            with contextlib.suppress(RuntimeError):
                on_first(signal.Signals(signum).name)
        elif signum == signal.SIGINT and ours is None:
            raise KeyboardInterrupt

    with signals_handled(take):
        yield request


@contextlib.contextmanager
def ending_at_ctrl_c() -> Iterator[None]:
    """End this process with the status of Ctrl-C if it comes in the block, and is no request."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(exit_status(signal.SIGINT)) from None


@contextlib.contextmanager
def signals_handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the stop signals in the block, except those that were ignored before."""
    before = {s: signal.signal(s, handler) for s in STOP_SIGNALS if signal.getsignal(s) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)

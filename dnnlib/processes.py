"""Work for several processes, in order, with a quiet end."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from dnnlib.errors import UserError

Item, Result = TypeVar("Item"), TypeVar("Result")


def default_workers() -> int:
    """One process per CPU that this one may use, at most 8."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, 8)


def map_in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    set_up: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """Yield function(item) in the order of the items, computed by `workers` processes; one worker means this process.

    set_up: called first in every process that is started, and not in this one.
    At most workers + 1 results exist at a time. Whatever ends the iteration early stops the processes: close it.
    Raises what the function raises, and UserError for want of memory.
    """
    workers = min(workers, len(items))
    pool = _pool(workers, set_up) if workers > 1 else None
    try:
        yield from map(function, items) if pool is None else _map_in_pool(pool, function, items)
    except MemoryError as error:
        advice = "use fewer --workers" if pool else "that is more than there is for one process"
        raise UserError(f"out of memory ({str(error) or 'for Python itself'}): {advice}") from None


class _Pool(NamedTuple):
    """Processes, and what asks them to take up no further item."""

    executor: ProcessPoolExecutor
    stop: Any
    workers: int


def _pool(workers: int, set_up: Callable[[], None] | None) -> _Pool | None:
    """None, and a line that says so, where processes can't talk to each other."""
    try:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
        stop = context.Event()
        return _Pool(
            ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(stop, set_up)), stop, workers
        )
    except (OSError, ImportError) as error:  # semaphores lie in shared memory, which may be full, read-only or missing
        tqdm.write(
            f"note: one process instead of {workers}, for want of shared memory ({getattr(error, 'strerror', error)}): "
            "see /dev/shm; docker run has --shm-size",
            file=sys.stderr,
        )
        return None


def _map_in_pool(pool: _Pool, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    pending: deque = deque()
    try:
        for item in items:
            with _interrupts_held():  # this may start a process
                pending.append(_submit(pool.executor, function, item))
            if len(pending) > pool.workers:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())
    except BrokenProcessPool:
        raise UserError("a worker process was killed, most likely for want of memory: use fewer --workers") from None
    finally:
        # Asked to stop, not killed: a process that dies while it sends a result leaves the pool waiting for the rest.
        pool.stop.set()
        pool.executor.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, function: Callable, item: Any) -> Future:
    try:
        return pool.submit(_unless_stopped, function, item)
    except OSError as error:
        raise UserError(f"another process can't be started ({error.strerror}): use fewer --workers") from None


def _result(future: Future) -> Any:
    """The future's result. A Ctrl-C that comes just as Python takes the future's lock again shows as a RuntimeError."""
    try:
        return future.result()
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


_stop: Any = None  # in a worker: the parent's request to take up no further item


def _begin_worker(stop: Any, set_up: Callable[[], None] | None) -> None:
    global _stop
    _stop = stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if set_up is not None:
        set_up()


def _end_with_parent() -> None:
    """A parent that is killed can't end its workers; they would wait for work for ever."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the block is over. Processes started in it never notice one, from their first instruction on:
    a terminal sends it to all, but the parent alone reports it and ends the workers.
    """
    if threading.current_thread() is not threading.main_thread():  # others are never interrupted
        yield
        return
    asked = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # The mask is this thread's and its children's. Where another thread takes the signal, Python still calls the
    # handler in this one, and a process whose start is interrupted would wait for its instructions forever.
    handler = signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if asked:
        raise KeyboardInterrupt


def _unless_stopped(function: Callable[[Item], Result], item: Item) -> Result | None:
    return None if _stop.is_set() else function(item)


# --- one command ----------------------------------------------------------------------------------------------------

GRACE = 20  # seconds that a command has to end after it was asked to
_BY_SIGNAL = 0x80  # what a shell adds to the signal that ended a command
# Runs before the command and becomes it: in Popen's preexec_fn, locks of other threads would be held for ever.
_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def run_python(arguments: Sequence[str], **options) -> int:
    """Run Python with these arguments; it ends when this process does. Returns its exit status as a shell has it.

    SIGTERM and SIGHUP are passed on; what has not ended GRACE seconds later, or at a second signal, is killed. On Linux
    it ends also with a parent that was killed. Ctrl-C is left to it, for a terminal sends it to both. The status of
    what was ended so tells the signal. options: for subprocess.Popen.
    """
    asked: list[int] = []
    process: subprocess.Popen | None = None

    def take(signum: int, frame: object) -> None:
        asked.append(signum)
        if process is not None:
            pass_on()

    def pass_on() -> None:
        times = sum(signum != signal.SIGINT for signum in asked)
        if times == 1:
            process.terminate()
            threading.Thread(target=lambda: time.sleep(GRACE) or process.kill(), daemon=True).start()
        elif times:
            process.kill()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {s: signal.signal(s, take) for s in signals if signal.getsignal(s) is not signal.SIG_IGN}
    try:
        with_parent = ["-I", "-S", "-c", _WITH_PARENT, str(os.getpid())] if sys.platform == "linux" else []
        process = subprocess.Popen([sys.executable, *with_parent, *arguments], **options)
        pass_on()  # what came while it was started
        status = process.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return _BY_SIGNAL + asked[0] if asked else status if status >= 0 else _BY_SIGNAL - status

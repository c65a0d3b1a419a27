"""Spread work over several processes that end quietly; run one Python command that ends with this process."""

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
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from dnnlib.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_workers() -> int:
    """Number of CPUs that this process may use, at most 8."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, 8)


def map_in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    set_up: Callable[[], None] | None = None,
) -> Generator[Result, None, None]:
    """Yield function(item) in the order of the items, computed by `workers` processes; one worker means this process.

    set_up: called first in every process that is started, but not in this one.
    At most workers + 1 results exist at a time. To stop early, close the generator: that ends the processes.
    Raises whatever the function raises, and UserError for want of memory.
    """
    workers = min(workers, len(items))
    pool = _pool(workers, set_up) if workers > 1 else None
    try:
        yield from map(function, items) if pool is None else _map_in_pool(pool, function, items)
    except MemoryError as error:
        advice = "use fewer --workers" if pool else "that is more than there is for one process"
        raise UserError(f"out of memory ({str(error) or 'for Python itself'}): {advice}") from None


class _Pool(NamedTuple):
    executor: ProcessPoolExecutor
    stop: Any  # an Event: once set, the processes take up no further item
    workers: int


def _pool(workers: int, set_up: Callable[[], None] | None) -> _Pool | None:
    """Start a pool. Where processes can't talk to each other, write a note and return None."""
    try:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
        stop = context.Event()
        executor = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(stop, set_up))
        return _Pool(executor, stop, workers)
    except (OSError, ImportError) as error:  # semaphores lie in shared memory, which may be full, read-only or missing
        tqdm.write(
            f"note: one process instead of {workers}, for want of shared memory ({getattr(error, 'strerror', error)}): "
            "see /dev/shm; docker run has --shm-size",
            file=sys.stderr,
        )
        return None


def _map_in_pool(pool: _Pool, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    pending: deque[Future] = deque()
    try:
        for item in items:
            with _interrupts_held():  # as this may start a process
                pending.append(_submit(pool.executor, function, item))
            if len(pending) > pool.workers:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())
    except BrokenProcessPool:
        raise UserError("a worker process was killed, most likely for want of memory: use fewer --workers") from None
    finally:
        # Ask the processes to stop, don't kill them: one that dies while it sends a result leaves the pool waiting.
        pool.stop.set()
        pool.executor.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, function: Callable, item: Any) -> Future:
    try:
        return pool.submit(_unless_stopped, function, item)
    except OSError as error:
        raise UserError(f"another process can't be started ({error.strerror}): use fewer --workers") from None


def _result(future: Future) -> Any:
    """Return the future's result.

    A Ctrl-C that comes while Python takes the future's lock again shows as a RuntimeError. It becomes a Ctrl-C again.
    """
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
    """End this worker when its parent has ended. A parent that is killed can't do so; the worker would wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let Ctrl-C wait until the block is over, and start processes that never notice one.

    A terminal sends Ctrl-C to all processes, but the parent alone reports it and ends the workers.
    """
    if threading.current_thread() is not threading.main_thread():  # others are never interrupted
        yield
        return
    asked = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # The mask holds for this thread and its children. If another thread takes the signal, Python still calls the
    # handler in this one, and a process that is interrupted while it starts would wait for its instructions forever.
    handler = signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if asked:
        raise KeyboardInterrupt


def _unless_stopped(function: Callable[[Item], Result], item: Item) -> Result | None:
    """Work on one item in a worker, unless the parent has asked it to stop."""
    return None if _stop.is_set() else function(item)


# --- one command ----------------------------------------------------------------------------------------------------

GRACE = 20  # seconds that a command has to end after it was asked to
_BY_SIGNAL = 128  # a shell adds this to the number of the signal that ended a command
# On Linux, this program asks to be ended with its parent, then becomes the command. Popen's preexec_fn could ask as
# well, but runs where locks of other threads may be held forever.
_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def run_python(arguments: Sequence[str], **options) -> int:
    """Run Python with these arguments as a process that ends when this one does.

    SIGTERM and SIGHUP are passed on. A command that has not ended GRACE seconds later, or at a second signal, is
    killed. On Linux it also ends if this process is killed. Ctrl-C is not passed on: a terminal sends it to both.
    options: for subprocess.Popen.
    Returns the exit status as a shell has it: 128 + signal if a signal came.
    """
    asked: list[int] = []
    process: subprocess.Popen | None = None

    def take(signum: int, frame: object) -> None:
        asked.append(signum)
        if process is not None:
            _pass_on(asked, process)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {s: signal.signal(s, take) for s in signals if signal.getsignal(s) is not signal.SIG_IGN}
    try:
        with_parent = ["-I", "-S", "-c", _WITH_PARENT, str(os.getpid())] if sys.platform == "linux" else []
        process = subprocess.Popen([sys.executable, *with_parent, *arguments], **options)
        _pass_on(asked, process)  # the signals that came while it was started
        status = process.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return _BY_SIGNAL + asked[0] if asked else status if status >= 0 else _BY_SIGNAL - status


def _pass_on(asked: Sequence[int], process: subprocess.Popen) -> None:
    """End a process as it was asked to by these signals: politely at the first, at once at the second."""
    times = sum(signum != signal.SIGINT for signum in asked)
    if times == 1:
        process.terminate()
        threading.Thread(target=_kill_later, args=(process,), daemon=True).start()
    elif times:
        process.kill()


def _kill_later(process: subprocess.Popen) -> None:
    time.sleep(GRACE)
    process.kill()

"""Work spread over several processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from dnnlib.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use. A container or job scheduler may allow only some."""
    # macOS has no such call.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Number of CPUs that this process may use, at most 8."""
    return min(usable_cpus(), 8)


def map_in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    set_up: Callable[[], None] | None = None,
) -> Generator[Result, None, None]:
    """Yield function(item) for each item, in order, computed by `workers` processes. One worker is this process itself.

    set_up: called first in every new process, but not in this one.
    At most workers + 1 results exist at a time. Closing the generator stops early and ends the processes.
    Raises the exceptions of the function, and UserError if memory runs out.
    """
    workers = min(workers, len(items))
    pool = _pool(workers, set_up) if workers > 1 else None
    try:
        yield from map(function, items) if pool is None else _map_in_pool(pool, function, items)
    except MemoryError as error:
        advice = "use fewer --workers" if pool else "one process needs more than there is"
        raise UserError(f"out of memory ({str(error) or 'for Python itself'}): {advice}") from None


class _Pool(NamedTuple):
    """Worker processes."""

    executor: ProcessPoolExecutor
    stop: Any  # a multiprocessing.Event: once it is set, workers skip the remaining items
    workers: int


def _pool(workers: int, set_up: Callable[[], None] | None) -> _Pool | None:
    """Start a pool. If processes can't communicate on this machine, write a note and return None."""
    try:
        context = multiprocessing.get_context("spawn")  # not "fork", which copies locks that other threads hold
        stop = context.Event()
        executor = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(stop, set_up))
        return _Pool(executor, stop, workers)
    except (OSError, ImportError) as error:
        # Semaphores need shared memory, which may be full, read-only or missing.
        tqdm.write(
            f"note: one process instead of {workers}, as shared memory is lacking "
            f"({getattr(error, 'strerror', error)}): see /dev/shm; docker run has --shm-size",
            file=sys.stderr,
        )
        return None


def _map_in_pool(pool: _Pool, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield results in the order of the items. Submits new items only as old results are taken."""
    pending: deque[Future] = deque()
    try:
        for item in items:
            with _interrupts_held():  # the executor may start a process here
                pending.append(_submit(pool.executor, function, item))
            if len(pending) > pool.workers:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())
    except BrokenProcessPool:
        raise UserError("a worker process was killed, most likely for lack of memory: use fewer --workers") from None
    finally:
        # Ask processes to stop instead of killing them. If one dies while sending a result, the pool waits forever. So
        # it does after a Ctrl-C in `shutdown`: a second Ctrl-C waits for the items at hand, too.
        pool.stop.set()
        with _interrupts_held():
            pool.executor.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, function: Callable, item: Any) -> Future:
    """Submit an item. Raises UserError if a process can't be started."""
    try:
        return pool.submit(_unless_stopped, function, item)
    except OSError as error:
        raise UserError(f"another process can't be started ({error.strerror}): use fewer --workers") from None


def _result(future: Future) -> Any:
    """Return the future's result.

    Python turns a Ctrl-C into a RuntimeError if it comes while the future's lock is taken. This turns it back.
    """
    try:
        return future.result()
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


_stop: Any = None  # in a worker: the pool's Event `stop`


def _begin_worker(stop: Any, set_up: Callable[[], None] | None) -> None:
    """Prepare a new worker process."""
    global _stop
    _stop = stop
    end_with_parent()
    if set_up is not None:
        set_up()


def end_with_parent() -> None:
    """From now on, end this worker when its parent has ended. A killed parent can't end it: it would wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C until the block ends. Processes that are started in the block ignore Ctrl-C.

    A terminal sends Ctrl-C to all processes. The parent reports it and ends the workers, so they need not notice.
    """
    if threading.current_thread() is not threading.main_thread():  # Python interrupts the main thread only
        yield
        return
    asked = []
    # New processes inherit the mask of blocked signals, so they never see Ctrl-C.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # The mask does not cover other threads. If one of them gets the signal, Python calls the handler in this thread. An
    # exception would then leave a process half started, and it would wait forever. So the handler only takes note.
    handler = signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if asked:
        raise KeyboardInterrupt


def _unless_stopped(function: Callable[[Item], Result], item: Item) -> Result | None:
    """Compute one item in a worker, or return None if the parent has asked it to stop."""
    return None if _stop.is_set() else function(item)


def exit_status(signum: int) -> int:
    """Return the exit status of a program that a signal stopped, as a shell reports it."""
    return 128 + signum

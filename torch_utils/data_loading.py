"""A DataLoader that raises UserErrors of its workers as they are, and continues alone if its workers fail."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from dnnlib.errors import UserError
from dnnlib.processes import end_with_parent
from torch_utils.stopping import STOP_SIGNALS

_DESCRIPTORS = 64  # files that may be open while workers send tensors


class Items(Protocol):
    """A data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any) -> Any: ...


class _ErrorsAsValues(Dataset):
    """Wraps a data set, and returns a UserError as the item. DataLoader would turn a raised one into a traceback."""

    def __init__(self, dataset: Items) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except UserError as error:
            return error


def _collate(items: list[Any]) -> Any:
    """Collate items into a minibatch, or return the first UserError among them."""
    return next((item for item in items if isinstance(item, UserError)), None) or default_collate(items)


def minibatches(
    dataset: Items,
    batches: Iterable[list],
    workers: int,
    log: Callable[[str], None] = tqdm.write,
    **options,
) -> Iterator[Any]:
    """Iterate over DataLoader(dataset, batch_sampler=batches). Raises the UserErrors of the data set unchanged.

    batches: lists of indices, the same ones at every iteration. If worker processes fail, because shared memory, open
    files or memory run out, this process reads the remaining minibatches itself, and writes a line to `log`.
    The data set goes to new processes, so it must be picklable. Draws no random numbers.
    """
    done = 0
    if workers:
        try:
            for minibatch in _load(dataset, batches, num_workers=workers, **options):
                done += 1
                yield minibatch
            return
        except UserError:
            raise
        except Exception as error:  # of any kind: if the data cause it, reading them below raises it again
            reason = _say(error)
            # The error holds the frames it went through, and these hold the loader. Without them, the workers end now.
            traceback.clear_frames(error.__traceback__)
        log(
            f"Reading with --workers={workers} failed ({reason}). This process now reads the same data alone, more "
            "slowly, as with --workers=0. In a container, more shared memory may help: docker run --shm-size=2g"
        )
    yield from _load(dataset, itertools.islice(batches, done, None), **options)


def _load(dataset: Items, batches: Iterable[list], **options) -> Iterator[Any]:
    """Yield minibatches. Raises the first UserError of the data set."""
    loader = DataLoader(
        _ErrorsAsValues(dataset),
        batch_sampler=batches,
        collate_fn=_collate,
        worker_init_fn=_begin_worker,
        # Not "fork", which copies locks that other threads hold. Not "forkserver", whose workers have another parent.
        multiprocessing_context="spawn" if options.get("num_workers") else None,
        generator=torch.Generator(),  # otherwise it draws from torch's global one whenever it starts
        **options,
    )
    for minibatch in _start(loader):
        if isinstance(minibatch, UserError):
            raise minibatch
        yield minibatch


def _start(loader: DataLoader) -> Iterator[Any]:
    """Return iter(loader). Raises RuntimeError with the reason if it fails."""
    # A half-made iterator raises more errors while it is deleted. Python would print them, so silence its hook.
    complain, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        if loader.num_workers:
            _require_descriptors(_DESCRIPTORS)
            with _stop_signals_kept_from_workers(), _child_signals_as_they_were():
                return iter(loader)
        return iter(loader)
    except Exception as error:
        reason = _say(error)
    finally:
        sys.unraisablehook = complain
    raise RuntimeError(reason)


def _require_descriptors(spare: int) -> None:
    """Raise OSError unless this process can open `spare` more files.

    With too few, worker processes print tracebacks or wait forever.
    """
    with contextlib.ExitStack() as opened:
        for _ in range(spare):
            opened.enter_context(open(os.devnull, "rb"))


def _begin_worker(worker: int) -> None:
    """Prepare a new worker process."""
    # DataLoader's workers compare their parent's number with the first one they saw. If the parent was killed before,
    # they would stay forever.
    end_with_parent()


@contextlib.contextmanager
def _stop_signals_kept_from_workers() -> Iterator[None]:
    """Start processes in the block that never get stop signals. Terminals send these to all processes of a program, but
    the last step of their parent needs data.
    """
    # New processes inherit the mask of blocked signals. Handlers would come too late: importing torch takes seconds.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        # A helper that Python starts beside the first worker. Python unblocks some of the signals then.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@atexit.register
def _end_workers() -> None:
    """End workers that are left when the program ends. Python would send SIGTERM, which they block, and then wait."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


@contextlib.contextmanager
def _child_signals_as_they_were() -> Iterator[None]:
    """Restore this process's handler of SIGCHLD after the block.

    DataLoader installs a handler that raises an error when a worker ends, even in the middle of a training step.
    Without the handler, DataLoader notices the end when it next waits for that worker.
    """
    # Only the main thread may set handlers, and Windows has no SIGCHLD.
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _say(error: Exception) -> str:
    """Return the reason of an error in one line. It is the last line: an error of a worker begins with a traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1].strip()[:120]

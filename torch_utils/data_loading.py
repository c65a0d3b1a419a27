"""A DataLoader whose workers hand over the user's mistakes instead of tracebacks, and that goes on without workers."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from dnnlib.errors import UserError

_DESCRIPTORS = 64  # files that handing over tensors may keep open


class Items(Protocol):
    """A data set of numbered items."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any) -> Any: ...


class _ErrorsAsValues(Dataset):
    """Items of a data set, or the UserError that reading one raised, which DataLoader would bury in a traceback."""

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
    """One tensor of each field of the items, or the first UserError among them."""
    return next((item for item in items if isinstance(item, UserError)), None) or default_collate(items)


def minibatches(
    dataset: Items,
    batches: Iterable[list],
    workers: int,
    log: Callable[[str], None] = tqdm.write,
    **options,
) -> Iterator[Any]:
    """Iterate over DataLoader(dataset, batch_sampler=batches). A UserError of the data set is raised as it was there.

    batches: lists of what dataset[...] takes, the same ones at every iteration. If the `workers` processes fail, for
    want of shared memory, files or memory, this process reads the remaining minibatches itself, and `log` gets a line
    about it.
    """
    if "generator" not in options:
        # A DataLoader draws numbers when it starts. So that they don't depend on how often it starts, draw one here.
        seed = int(torch.empty((), dtype=torch.int64).random_())
        options["generator"] = torch.Generator().manual_seed(seed)
    done = 0
    if workers:
        try:
            for minibatch in _load(dataset, batches, num_workers=workers, **options):
                done += 1
                yield minibatch
            return
        except UserError:
            raise
        except Exception as error:  # of any kind: if the data were the cause, reading on will raise it again
            reason = _say(error)
        log(
            f"Reading with --workers={workers} failed ({reason}). This process reads on alone, the same data but more "
            "slowly, as with --workers=0. In a container, more shared memory may help: docker run --shm-size=2g"
        )
    yield from _load(dataset, itertools.islice(batches, done, None), **options)


def _load(dataset: Items, batches: Iterable[list], **options) -> Iterator[Any]:
    loader = DataLoader(_ErrorsAsValues(dataset), batch_sampler=batches, collate_fn=_collate, **options)
    for minibatch in _start(loader):
        if isinstance(minibatch, UserError):
            raise minibatch
        yield minibatch


def _start(loader: DataLoader) -> Iterator[Any]:
    """iter(loader). Raises RuntimeError if it fails.

    An iterator that is half made raises errors while it is deleted, which Python would print; they are kept back.
    """
    complain, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        if loader.num_workers:
            _require_descriptors(_DESCRIPTORS)
        with _child_signals_as_they_were():
            return iter(loader)
    except Exception as error:
        reason = _say(error)
    finally:
        sys.unraisablehook = complain
    raise RuntimeError(reason)


def _require_descriptors(spare: int) -> None:
    """Raise OSError unless `spare` more files can be opened.

    Worker processes that are short of them print tracebacks or wait for ever.
    """
    with contextlib.ExitStack() as opened:
        for _ in range(spare):
            opened.enter_context(open(os.devnull, "rb"))


@contextlib.contextmanager
def _child_signals_as_they_were() -> Iterator[None]:
    """Keep this process's handler of SIGCHLD within the block.

    DataLoader sets one that raises an error as soon as a worker ends, wherever this process is then, for example in the
    middle of a step. Without it, DataLoader notices when it waits for that worker.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _say(error: Exception) -> str:
    """The reason in one line: the last line, as an error from a worker begins with a traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1].strip()[:120]

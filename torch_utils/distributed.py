"""The processes of a run, called ranks, seen from one of them."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import psutil
import torch
import torch.distributed as dist

from dnnlib.errors import UserError
from dnnlib.failures import LostPeer, describe_exception, launcher, leave_record, record_of
from dnnlib.processes import exit_status, usable_cpus
from torch_utils.launching import ranks_around
from torch_utils.memory import means_no_memory
from torch_utils.stopping import STOP_SIGNALS

Value = TypeVar("Value")

BACKEND = "STYLEGAN2_MR_BACKEND"  # of the environment: gloo lets ranks share a GPU, which NCCL refuses
_FAILED = "failed"  # key of the store: it is there once a rank has failed
_SLOWEST_POLL = 0.1  # seconds


def default_device() -> torch.device:
    """Return the first GPU, or the CPU if there is no GPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class World:
    """The processes of a run, and the place of this one among them. By default it is alone.

    All ranks must make the same calls in the same order.
    """

    rank: int = 0  # number of this process among all
    size: int = 1  # number of processes
    local_rank: int = 0  # number of this process among those of its machine
    local_size: int = 1  # number of processes of this machine
    device: torch.device = field(default_factory=default_device)
    _store: dist.Store | None = None  # small values that all ranks can read; None if alone
    _calls: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    def add_up(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its sum over all processes. Every process gets the same bits.

        Raises LostPeer if another process has gone, or does not come within the time limit of `joined`.
        """
        if self.size == 1:
            return
        with _answering("another process of the run"):
            dist.all_reduce(tensor)

    def share(self, value: Value) -> Value:
        """Return the first process's value in all processes, however long they wait for it. It must be plain JSON."""
        if self._store is None:
            return value
        key = self._new_key()
        if not self.first:
            return self._read(key)
        with _answering("the launcher"):
            self._store.set(key, json.dumps(value))
        return value

    def meet(self) -> None:
        """Wait until all processes have come here, however long it takes."""
        if self._store is None:
            return
        key = self._new_key()
        with _answering("the launcher"):
            if self._store.add(key, 1) == self.size:
                self._store.set(f"{key}/all", "")
        self._wait_for(f"{key}/all")

    def differing(self, hashes: Mapping[str, int | str]) -> list[str]:
        """Return the names whose hashes are not the same in all processes. All processes must give the same names."""
        if self._store is None:
            return []
        key = self._new_key()
        if not self.first:
            with _answering("the launcher"):
                self._store.set(f"{key}/{self.rank}", json.dumps(dict(hashes)))
            return self.share([])
        others = [self._read(f"{key}/{rank}") for rank in range(1, self.size)]
        names = dict.fromkeys(name for known in [hashes, *others] for name in known)
        return self.share([name for name in names if any(known.get(name) != hashes.get(name) for known in others)])

    def _new_key(self) -> str:
        """Return a key of the store, the same in all ranks, for one call."""
        return f"call/{next(self._calls)}"

    def _read(self, key: str) -> Any:
        """Wait for a value in the store, and return it."""
        assert self._store is not None
        self._wait_for(key)
        with _answering("the launcher"):
            return json.loads(self._store.get(key))

    def _wait_for(self, key: str) -> None:
        """Wait until the store has a key. Asks again and again, as the store's own waiting has a time limit."""
        assert self._store is not None
        pause = 0.001
        with _answering("the launcher"):
            while not self._store.check([key]):
                if self._store.check([_FAILED]):
                    raise LostPeer("another process of the run has failed")
                time.sleep(pause)
                pause = min(2 * pause, _SLOWEST_POLL)


@contextlib.contextmanager
def _answering(who: str) -> Iterator[None]:
    """Turn errors of connections in the block into LostPeer. Torch raises RuntimeError for them."""
    try:
        yield
    except RuntimeError as error:
        if means_no_memory(error) or "CUDA error" in str(error):  # of this process
            raise
        raise LostPeer(f"{who} did not answer ({describe_exception(error)})") from error


def refuse_too_many(processes: int) -> None:
    """Raise UserError if this machine has GPUs, but fewer than processes."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else processes
    if processes > gpus and os.environ.get(BACKEND) != "gloo":
        raise UserError(
            f"{processes} processes need {processes} GPUs, but there {'is' if gpus == 1 else 'are'} {gpus} on this "
            f"machine: use at most {gpus}"
        )


# --- a rank's life ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def joined(timeout_minutes: float = 30) -> Iterator[World]:
    """Join the other ranks of a run during the block. Yields a World of one if this process is no rank.

    Ranks are started by `torch_utils.launching.launch` or by `torchrun`. All ranks leave together: the first to come to
    the end of the block waits for the others, also after sys.exit with a stop signal's status. A rank that raises
    another exception in the block ends here, and leaves a record of it for the launcher. A rank also ends when its
    launcher is gone.

    timeout_minutes: how long `World.add_up` waits for the others. `share` and `meet` have no limit.
    Raises UserError if this machine has fewer GPUs than ranks.
    """
    if ranks_around() is None:
        yield World()
        return
    threading.Thread(target=_end_with, args=(_parent(),), daemon=True).start()
    world = None
    try:
        # Our launcher's ranks begin with these blocked, so that none of them comes while Python starts.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        world = _join(datetime.timedelta(minutes=timeout_minutes))
        try:
            yield world
        except SystemExit as end:
            if end.code in (None, 0, *map(exit_status, STOP_SIGNALS)):
                _leave(world)
            raise
        _leave(world)
    except KeyboardInterrupt:
        _flush()
        _end(exit_status(signal.SIGINT))
    except Exception as error:
        _fail(error, world)


def _join(timeout: datetime.timedelta) -> World:
    """Join the group that the environment describes."""
    rank, size, local_rank, local_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    refuse_too_many(local_size)
    _share_cores(local_size)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    backend = os.environ.get(BACKEND) or ("nccl" if device.type == "cuda" else "gloo")
    store, _, _ = next(iter(dist.rendezvous("env://", timeout=timeout)))
    # device_id: without it, NCCL guesses which GPU a barrier is for, and connects only at the first sum.
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
        device_id=device if backend == "nccl" else None,
    )
    return World(rank, size, local_rank, local_size, device, dist.PrefixStore("world", store))


def _share_cores(local_size: int) -> None:
    """Give each rank of this machine its share of the cores, unless OMP_NUM_THREADS says how many.

    `torchrun` sets OMP_NUM_THREADS=1 where the user set nothing, so there a 1 does not count.
    """
    asked = os.environ.get("OMP_NUM_THREADS")
    if asked is None or (asked == "1" and launcher() is None):
        torch.set_num_threads(max(usable_cpus() // local_size, 1))


def _leave(world: World) -> None:
    """Leave the group together with the others, and tell the launcher so."""
    world.meet()
    dist.destroy_process_group()
    # Elastic ends the others as soon as one process has ended with a stop signal's status. Rank 0 may hold the store,
    # and be gone before the others have asked it a last time.
    with contextlib.suppress(LostPeer):
        world.meet()
    if ours := launcher():
        ours.leaver(os.getpid()).touch()


def _fail(error: Exception, world: World | None) -> NoReturn:
    """End this rank after an exception: leave a record for the launcher, or print it if the launcher is not ours."""
    record = record_of(error)
    leave_record(record)
    if world is not None and world._store is not None:
        with contextlib.suppress(RuntimeError):  # the launcher may be gone
            world._store.set(_FAILED, "")
    if launcher() is None and not record.consequence:
        print(record.told, file=sys.stderr)
    _flush()
    _end(record.status)


def _flush() -> None:
    """Write what was printed, unless nobody reads it any more."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()


def _end(status: int) -> NoReturn:
    """End this process and its children at once. A regular end may wait for ever for ranks that are gone."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    if (ours := launcher()) and os.getppid() != ours.pid:  # it was killed
        shutil.rmtree(ours.folder, ignore_errors=True)
    os._exit(status)


def _parent() -> int:
    """Return the id of the process that started this rank, even if it has ended since, as far as that is known."""
    return ours.pid if (ours := launcher()) else os.getppid()


def _end_with(parent: int) -> None:
    """End this process once its parent is gone. A killed launcher can't end its ranks, and they would go on."""
    while os.getppid() == parent:
        time.sleep(1)
    _end(1)

"""Minibatches are the same, even if the processes that read them fail."""

import multiprocessing.synchronize
import os
import resource
import signal

import pytest
import torch

from dnnlib.errors import UserError
from torch_utils.data_loading import minibatches

BATCHES = [[n, n + 1, 7 - n] for n in range(6)]


class Squares(torch.utils.data.Dataset):
    """A data set of squares. A worker fails at one of its items."""

    def __init__(self, failure=None, at=0):
        self.failure, self.at = failure, at

    def __getitem__(self, n):
        if torch.utils.data.get_worker_info() is not None and n >= self.at:
            if self.failure == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.failure is not None:
                raise RuntimeError(f"first line\n{self.failure}")
        if n < 0:
            raise UserError(f"item {n} is damaged")
        return torch.tensor([n, n * n])


def read(dataset, workers, log=None):
    """Return all minibatches, and a random number drawn after them."""
    torch.manual_seed(1)
    log = pytest.fail if log is None else log
    return [m.tolist() for m in minibatches(dataset, BATCHES, workers, log)], torch.rand([]).item()


@pytest.mark.parametrize(
    "failure, at", [("unable to allocate shared memory(shm)", 0), ("Too many open files", 5), ("killed", 5)]
)
def test_this_process_goes_on_where_others_fail(failure, at, monkeypatch):
    waiting = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(waiting, "__defaults__", (0.1,))  # seconds until it looks whether the worker is alive,
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)  # and waits for one to end
    expected = read(Squares(), 0)
    assert read(Squares(), 2) == expected and len(expected[0]) == 6
    lines, before = [], signal.getsignal(signal.SIGCHLD)
    assert read(Squares(failure, at), 2, lines.append) == expected
    (line,) = lines
    assert ("exited unexpectedly" if failure == "killed" else f"({failure})") in line
    assert "--workers=2 failed" in line and "--workers=0" in line and "--shm-size" in line and "\n" not in line
    assert signal.getsignal(signal.SIGCHLD) is before, "the end of a worker must not raise in the middle of a step"


@pytest.mark.filterwarnings("error")
def test_no_semaphores_and_no_room_for_open_files(monkeypatch):
    expected = read(Squares(), 0)

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
        lines = []
        assert read(Squares(), 1, lines.append) == expected and "Read-only file system" in lines[0]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/dev/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 30, limits[1]))
        assert read(Squares(), 1, lines.append) == expected and "Too many open files" in lines[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_users_mistakes_are_raised_as_they_are(workers):
    with pytest.raises(UserError, match="^item -1 is damaged$"):
        list(minibatches(Squares(), [[0], [-1]], workers, pytest.fail))


def test_what_is_wrong_with_the_program_shows_as_itself():
    with pytest.raises(TypeError, match="'<' not supported"):
        list(minibatches(Squares(), [["x"]], 1, lambda _: None))

"""Minibatches are the same, even if the processes that read them fail."""

import multiprocessing.synchronize
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from dnnlib.errors import UserError
from helpers.commands import ROOT
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
    """Return all minibatches. Asserts that no random number was drawn for them."""
    before = torch.get_rng_state()
    log = pytest.fail if log is None else log
    read = [m.tolist() for m in minibatches(dataset, BATCHES, workers, log)]
    assert torch.equal(torch.get_rng_state(), before)
    return read


@pytest.mark.parametrize(
    "failure, at", [("unable to allocate shared memory(shm)", 0), ("Too many open files", 5), ("killed", 5)]
)
def test_this_process_goes_on_where_others_fail(failure, at, monkeypatch):
    waiting = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(waiting, "__defaults__", (0.1,))  # seconds until it looks whether the worker is alive,
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)  # and waits for one to end
    expected = read(Squares(), 0)
    assert read(Squares(), 2) == expected and len(expected) == 6
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


# A program whose worker is stuck in an item. `end` says how it ends.
PROGRAM = """
import os, signal, sys, time
from torch_utils.data_loading import minibatches

class Slow:
    def __len__(self): return 10
    def __getitem__(self, n):
        if n == 2:
            os.write(1, b"stuck")
            time.sleep(1000)
        return n

end, seen = sys.argv[1], []
if __name__ == "__main__":
    for request in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(request, lambda number, frame: seen.append(number))
    read = minibatches(Slow(), [[n] for n in range(10)], 1, lambda line: os.write(1, line.encode()))
    assert next(read).item() == 0
    for request in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.killpg(0, request)
    assert next(read).item() == 1 and len(seen) == 3
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("a mistake")
"""


@pytest.mark.parametrize("end", ["killed", "raises"])
def test_workers_ignore_requests_to_stop_and_end_with_their_parent(end, tmp_path):
    """Requests come to all processes of a group, as a terminal sends them. No process of the group is left."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, tmp_path / "program.py", end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            out, errors = process.communicate(timeout=120)  # until no process holds the pipes any more
        finally:
            left = end_group(process.pid)
    assert not left and out in (b"", b"stuck")
    assert process.returncode == (-signal.SIGKILL if end == "killed" else 1)
    # Python's helper tells of what it cleans up after a killed program.
    assert b"leaked semaphore" in errors if end == "killed" else errors.endswith(b"RuntimeError: a mistake\n")
    assert errors.count(b"Traceback") == (end == "raises")


def end_group(group):
    """Return whether a process of a group is left after some seconds, and kill it."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return True

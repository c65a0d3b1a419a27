"""Work in several processes: results in order, and a quiet end after errors, kills and Ctrl-C."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dnnlib.errors import UserError
from dnnlib.processes import _interrupts_held, _result, map_in_order
from helpers.commands import ROOT


def test_one_worker_is_this_process_and_works_as_asked():
    done = []
    results = map_in_order(lambda n: done.append(n) or n * n, [1, 2, 3], workers=1)
    assert next(results) == 1 and done == [1]
    assert list(results) == [4, 9]


def test_a_worker_that_dies_is_reported():
    with pytest.raises(UserError, match="a worker process was killed.*use fewer --workers"):
        list(map_in_order(os._exit, [3, 3, 3], workers=2))


def want_memory(n):
    raise MemoryError("Unable to allocate 89.3 MiB")


@pytest.mark.parametrize("workers, advice", [(1, "one process needs more than there is"), (2, "use fewer --workers")])
def test_want_of_memory_is_one_message(workers, advice):
    with pytest.raises(UserError, match=f"out of memory .Unable to allocate 89.3 MiB.: .*{advice}"):
        list(map_in_order(want_memory, range(3), workers))


@pytest.mark.parametrize("broken", ["Event", "SimpleQueue", "Lock"])
def test_without_semaphores_one_process_does_all(monkeypatch, capsys, broken):
    """Shared memory may be full, read-only or missing: for the first object that needs it, or for a later one."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(multiprocessing.get_context("spawn"), broken, full)
    assert list(map_in_order(lambda n: (n, os.getpid()), range(3), workers=2)) == [(n, os.getpid()) for n in range(3)]
    (line,) = capsys.readouterr().err.splitlines()
    assert "one process instead of 2, as shared memory is lacking (No space left on device): see /dev/shm" in line


def test_a_process_that_cannot_be_started_is_reported(monkeypatch):
    def none_left(*_):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", none_left)
    with pytest.raises(UserError, match="can't be started .Resource temporarily unavailable.: use fewer --workers"):
        list(map_in_order(abs, range(3), workers=2))


def remember_set_up():
    os.environ["SET_UP"] = "done"


def read_set_up(_):
    return os.environ.get("SET_UP")


def test_every_worker_is_set_up_and_this_process_is_not():
    assert list(map_in_order(read_set_up, range(6), workers=2, set_up=remember_set_up)) == ["done"] * 6
    assert "SET_UP" not in os.environ


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """The kernel kills the parent when memory runs out: its workers end too, and no pipe stays open."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, time\n"
        "from dnnlib.processes import map_in_order\n"
        "def work(n):\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    pids = set()\n"
        "    for pid in map_in_order(work, range(6), 2):\n"
        "        print(pid, flush=True)\n"
        "        if (n := globals().setdefault('n', 0) + 1) == 3:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        globals()['n'] = n\n"
    )
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    out, _ = process.communicate(timeout=60)  # returns when the last process that holds the pipe has ended
    assert process.returncode == -signal.SIGKILL and len(out.split()) == 3


def test_a_second_ctrl_c_ends_the_workers_too(tmp_path):
    """It comes while the pool waits for the items that the first one found at work."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, time\n"
        "from dnnlib.processes import map_in_order\n"
        "def work(n):\n"
        "    open(f'at-{n}', 'w').close()\n"
        "    while n and not os.path.exists('go'):\n"
        "        time.sleep(0.01)\n"
        "    return n\n"
        "if __name__ == '__main__':\n"
        # A shell that runs the tests in the background lets them ignore it.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    for n in map_in_order(work, range(100), 2):\n"
        "        print(n, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        start_new_session=True,
    )
    while not (tmp_path / "at-2").exists():
        time.sleep(0.01)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all processes
        time.sleep(0.2)
    (tmp_path / "go").touch()
    out, words = process.communicate(timeout=60)  # returns when the last process that holds the pipe has ended
    assert process.returncode == -signal.SIGINT and out == b"0\n", words.decode()
    assert not (tmp_path / "at-99").exists() and words.endswith(b"KeyboardInterrupt\n"), words.decode()


@pytest.mark.parametrize("sender", ["this thread", "another thread"])
def test_an_interrupt_waits_until_a_process_has_started(sender):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes its background jobs ignore it
    started, go = [], threading.Event()

    def send():
        go.wait()
        if sender == "another thread":
            signal.raise_signal(signal.SIGINT)

    other = threading.Thread(target=send)
    other.start()  # before the mask is set, like threads of a pool or a progress bar
    with pytest.raises(KeyboardInterrupt), _interrupts_held():
        if sender == "this thread":
            signal.raise_signal(signal.SIGINT)
        go.set()
        other.join()
        started.append(True)
    assert started == [True] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_between_the_locks_of_a_future_is_a_ctrl_c():
    """Python raises RuntimeError if Ctrl-C comes while it takes a future's lock again."""

    class Interrupted:
        def result(self):
            try:
                raise KeyboardInterrupt
            finally:
                raise RuntimeError("cannot release un-acquired lock")

    with pytest.raises(KeyboardInterrupt):
        _result(Interrupted())

    class Failed:
        def result(self):
            raise RuntimeError("of the function's own")

    with pytest.raises(RuntimeError, match="own"):
        _result(Failed())

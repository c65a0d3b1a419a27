"""Ranks: what they tell each other, and how they start, stop and fail together."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from dnnlib.errors import UserError
from dnnlib.failures import LAUNCHER
from dnnlib.processes import usable_cpus
from helpers.commands import ROOT
from helpers.rank import ADVICE
from torch_utils import distributed
from torch_utils.distributed import BACKEND, World, refuse_too_many

OURS = ("-m", "helpers.rank")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "helpers.rank")


def start(ranks, task, folder, program=OURS):
    """Start helpers/rank.py as a program in a session of its own, as a terminal does."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, *program, str(ranks), task, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**environment, "PYTHONPATH": path},
    )


def run(ranks, task, folder, program=OURS):
    """Run helpers/rank.py to its end. Returns its exit status and what it printed."""
    process = start(ranks, task, folder, program)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def wait_for_steps(ranks, folder):
    """Wait until all ranks have done some steps."""
    steps = [folder / f"step-{rank}" for rank in range(ranks)]
    while not all(path.exists() and path.read_text() >= "5" for path in steps):
        time.sleep(0.05)


def living(folder):
    """Processes of a run that have not ended: ranks, and what they have started."""
    pids = [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]
    assert pids
    there = []
    for pid in pids:
        try:
            there += [pid] if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else []
        except psutil.NoSuchProcess:
            pass
    return there


def wait_for_the_end(folder, seconds=10):
    """Wait until no process of a run is left."""
    deadline = time.monotonic() + seconds
    while living(folder):
        assert time.monotonic() < deadline, living(folder)
        time.sleep(0.1)


def test_alone():
    world, tensor = World(), torch.ones(3)
    world.add_up(tensor)
    world.meet()
    assert tensor.tolist() == [1, 1, 1] and world.share("x") == "x" and world.differing({"a": 1}) == [] and world.first


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    refuse_too_many(1)
    with pytest.raises(UserError, match="^2 processes need 2 GPUs, but there is 1 on this machine: use at most 1$"):
        refuse_too_many(2)
    monkeypatch.setenv(BACKEND, "gloo")
    refuse_too_many(2)


@pytest.mark.parametrize(
    "omp, by_us, expected", [(None, True, 3), ("1", True, None), ("1", False, 3), ("2", False, None), (None, False, 3)]
)
def test_ranks_share_the_cores_unless_the_user_says_how_many(monkeypatch, omp, by_us, expected):
    """torchrun sets OMP_NUM_THREADS=1 itself."""
    monkeypatch.setattr(distributed, "usable_cpus", lambda: 7)
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    for name, value in (("OMP_NUM_THREADS", omp), (LAUNCHER, "1 /tmp" if by_us else None)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    distributed._share_cores(2)
    assert told == [expected] * (expected is not None)


def test_ranks_talk(tmp_path):
    status, output = run(2, "talk", tmp_path)
    assert (status, output) == (0, ""), output
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for dtype in (torch.float32, torch.float64):
        sums = [rank["sums"][str(dtype)] for rank in told]
        own = [torch.tensor(rank["sums"][f"own {dtype}"], dtype=dtype) for rank in told]
        assert sums[0] == sums[1] == (own[0] + own[1]).tolist()
    assert [rank["shared"] for rank in told] == [[{"rank": 0, "ä": [1.5, None]}, None]] * 2
    assert [rank["differing"] for rank in told] == [["other", "last"]] * 2
    assert [rank["threads"] for rank in told] == [max(usable_cpus() // 2, 1)] * 2
    if not torch.cuda.is_available():
        assert [rank["backend"] for rank in told] == ["gloo"] * 2


@pytest.mark.slow
def test_ranks_wait_for_each_other_beyond_the_time_limit(tmp_path):
    status, output = run(2, "late", tmp_path)
    assert (status, output) == (0, ""), output
    assert [json.loads((tmp_path / f"met-{rank}.json").read_text()) for rank in range(2)] == [True, True]
    assert [json.loads((tmp_path / f"shared-{rank}.json").read_text()) for rank in range(2)] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "ranks, event, expected, message",
    [
        (3, "mistake", 2, "error: slice 7 is damaged: use another archive"),
        (3, "bug", 1, "error: rank 1: RuntimeError: shapes differ (more in {log})"),
        (2, "stuck", 1, "error: rank 1: RuntimeError: shapes differ (more in {log})"),
        (2, "killed", 1, "error: rank 1 was killed (SIGKILL), most likely for lack of memory"),
    ],
)
def test_the_first_failure_is_told_last_and_once(tmp_path, ranks, event, expected, message):
    """Of the others, some fail because the first one is gone, and some have to be killed."""
    process = start(ranks, event, tmp_path)
    while (tmp_path / "step-0").exists() is False or (tmp_path / "step-0").read_text() != "2":
        time.sleep(0.02)
    wait_for_the_end(tmp_path)
    output, _ = process.communicate(timeout=10)
    log = tmp_path / "log.txt"
    told = [line for line in output.splitlines() if not line.startswith("stopping")]
    assert (process.returncode, told) == (expected, [message.format(log=log), ADVICE]), output
    if "more in" in message:
        assert log.read_text().count("Traceback") == 1 and "in many lines" in log.read_text()
    else:  # a killed rank writes nothing, so the launcher does
        assert log.read_text() == message + "\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "signum, receiver, expected", [("SIGINT", "terminal", 130), ("SIGTERM", "launcher", 143), ("SIGUSR1", "rank", 138)]
)
def test_all_ranks_stop_after_the_same_step(tmp_path, signum, receiver, expected):
    process = start(2, "train", tmp_path)
    wait_for_steps(2, tmp_path)
    send = os.killpg if receiver == "terminal" else os.kill
    # The greatest process id is that of what a rank has started last; its parent is a rank.
    rank = psutil.Process(max(living(tmp_path))).ppid()
    send(rank if receiver == "rank" else process.pid, getattr(signal, signum))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == expected and not living(tmp_path), output
    first, second = [json.loads((tmp_path / f"saved-{rank}.json").read_text()) for rank in range(2)]
    assert first == second and output in (f"stopping after {signum}\n", "" if receiver == "rank" else None)


@pytest.mark.slow
def test_ctrl_c_before_the_ranks_have_joined(tmp_path):
    process = start(2, "train", tmp_path)
    while not psutil.Process(process.pid).children():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "") and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path):
    process = start(2, "train", tmp_path)
    wait_for_steps(2, tmp_path)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 130 and not living(tmp_path)
    assert output == "stopping after SIGINT\nContinue with: again\n"
    assert not (tmp_path / "saved-0.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("program", [OURS, TORCHRUN], ids=["ours", "torchrun"])
def test_a_killed_launcher_takes_its_ranks_along(tmp_path, program):
    process = start(2, "train", tmp_path, program)
    wait_for_steps(2, tmp_path)
    process.kill()
    wait_for_the_end(tmp_path)
    process.communicate(timeout=10)


@pytest.mark.slow
def test_under_torchrun_a_rank_speaks_for_itself(tmp_path):
    status, output = run(2, "mistake", tmp_path, TORCHRUN)
    message = f"error: slice 7 is damaged: use another archive\n{ADVICE}\n"
    assert status == 1 and output.count(message) == 1 and not living(tmp_path), output
    # And torchrun tells what the rank left for it.
    assert "Root Cause" in output and output.count("slice 7 is damaged") == 2, output

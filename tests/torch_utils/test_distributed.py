"""Ranks: what they tell each other, and how they start, stop and fail together."""

import json
import os
import subprocess
import sys

import torch

from helpers.commands import ROOT
from torch_utils.distributed import World


def start(ranks, task, folder, **options):
    """Start helpers/rank.py as a program in a session of its own, as a terminal's foreground process is."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-m", "helpers.rank", str(ranks), task, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**environment, "PYTHONPATH": path},
        **options,
    )


def run(ranks, task, folder, **options):
    """Run helpers/rank.py to its end. Returns its exit status and what it printed."""
    process = start(ranks, task, folder, **options)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def test_alone():
    world, tensor = World(), torch.ones(3)
    world.add_up(tensor)
    world.meet()
    assert tensor.tolist() == [1, 1, 1] and world.share("x") == "x" and world.differing({"a": 1}) == [] and world.first


def test_two_ranks_talk_and_wait_for_each_other(tmp_path):
    status, output = run(2, "talk", tmp_path)
    assert (status, output) == (0, ""), output
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for dtype in (torch.float32, torch.float64):
        sums = [rank["sums"][str(dtype)] for rank in told]
        own = [torch.tensor(rank["sums"][f"own {dtype}"], dtype=dtype) for rank in told]
        assert sums[0] == sums[1] == (own[0] + own[1]).tolist()
    assert [rank["shared"] for rank in told] == [{"rank": 0, "ä": [1.5, None]}] * 2
    assert [rank["differing"] for rank in told] == [["other", "last"]] * 2
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert [rank["threads"] for rank in told] == [max(cores // 2, 1)] * 2
    if not torch.cuda.is_available():
        assert [rank["backend"] for rank in told] == ["gloo"] * 2

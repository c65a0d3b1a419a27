"""Values that are measured at snapshots, and the best snapshot. Whole runs are in test_training_loop.py."""

import json
import math
import resource
from types import SimpleNamespace

import pytest
import torch

from dnnlib.runs import Log
from torch_utils.distributed import World
from training.measures import Measures


@pytest.fixture
def measure(tmp_path):
    """Function that measures a value at a snapshot of so many kimg. The best is the largest."""
    values: list[float] = []
    world = World(device=torch.device("cpu"))
    measures = Measures(tmp_path, lambda *_: {"is": values[-1]}, world, Log(None), "is:max")

    def at(kimg: int, value: float) -> None:
        values.append(value)
        snapshot = tmp_path / f"network-snapshot-{kimg:06d}.safetensors"
        snapshot.write_text(str(value))
        measures.take(SimpleNamespace(ema=None, nimg=kimg * 1000), snapshot)

    return at


def test_the_best_is_one_that_is_a_number(tmp_path, measure):
    """A value that is not finite is neither the best nor in the way of better ones, and is null in the file."""
    for kimg, value in enumerate([math.nan, 1.0, math.inf, 3.0, 2.0]):
        measure(kimg, value)
    assert (tmp_path / "best-is.safetensors").read_text() == "3.0"
    lines = (tmp_path / "metric-is.jsonl").read_text().splitlines()
    assert [json.loads(line)["value"] for line in lines] == [None, 1, None, 3, 2]


def test_a_disk_with_room_for_half_a_line_gets_none(tmp_path, measure):
    """Half a line would spoil the next one."""
    measure(0, 1.0)
    file = tmp_path / "metric-is.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 9, hard))
    try:
        measure(1, 3.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    measure(2, 2.0)
    assert [json.loads(line)["kimg"] for line in file.read_text().splitlines()] == [0, 2]
    assert (tmp_path / "best-is.safetensors").read_text() == "2.0"

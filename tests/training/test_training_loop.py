"""A whole run."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from helpers.commands import ROOT
from helpers.drawn import write_archive
from helpers.trainings import TINY_OPTIONS, tiny_config, tiny_training
from slices.dataset import SliceDataset
from slices.schema import Schema
from training.snapshot import load_generator
from training.state import TrainingState
from training.training_loop import snapshot_is_due, tick_is_over


def test_another_schema_trains_as_well(tmp_path):
    plain = Schema(contrasts=("t1", "pd", "t2"))
    data = write_archive(tmp_path / "data.zip", schema=plain, count=8)
    outcome = tiny_training(tmp_path, data)
    assert outcome.kimg == 0.016 and not outcome.interrupted
    assert load_generator(outcome.snapshot).generator(torch.zeros(1, 8)).shape == (1, 3, 16, 16)


def test_ticks_and_snapshots_fall_due(archive):
    """The first tick is one step; snapshots come every `snap` ticks, or only at the end."""
    config = tiny_config(SliceDataset(archive))
    state = TrainingState.initial(config, torch.device("cpu"))
    state.nimg = config.batch
    assert tick_is_over(config, state)
    state.tick, state.tick_nimg = 1, state.nimg
    assert not tick_is_over(config, state)
    state.nimg += int(config.kimg_per_tick * 1000)
    assert tick_is_over(config, state)
    due = {}
    for snap in (0, 1, 2):
        ticks = (replace(state, tick=tick) for tick in range(5))
        due[snap] = [s.tick for s in ticks if snapshot_is_due(replace(config, snap=snap), s)]
    assert due == {0: [], 1: [1, 2, 3, 4], 2: [2, 4]}


@pytest.mark.slow
def test_ctrl_c_saves_a_snapshot_first(tmp_path, archive):
    options = [f"--outdir={tmp_path}", f"--data={archive}", *TINY_OPTIONS, "--kimg=1000", "--workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-c", "import slices.dataset, train; slices.dataset.MEMORY = 0; train.main()", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("tick 0"):
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: data workers get it too
    assert process.wait(timeout=60) == 130
    text = "".join(lines)
    assert "Traceback" not in text and "Saved" in text
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    assert 0 < load_generator(folder).info.kimg < 1000

"""Curves for TensorBoard: nothing stands there twice, and without its package nothing happens."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from helpers.commands import ROOT
from torch_utils.stats import Moments
from training.tensorboard import TensorBoard


def stats(loss: float) -> dict[str, Moments]:
    return {"Loss/G/loss": Moments(8, loss, 0.1), "Progress/tick": Moments(1, 2, 0)}


def test_without_the_package_nothing_happens(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it raises ImportError
    board = TensorBoard(tmp_path)
    board.tick(stats(1), 4)
    board.measures({"kid": 0.5}, 4)
    board.close()
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


def test_names_steps_and_where_a_run_continues(tmp_path, monkeypatch):
    """A stand-in for the package, which is optional, notes what it is told."""
    told = []

    class Writer:
        def __init__(self, folder, purge_step):
            told.append((folder, purge_step))

        def add_scalar(self, *arguments):
            told.append(arguments)

        def flush(self):
            told.append("flush")

        close = flush

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", type(sys)("tensorboard"))
    sys.modules["torch.utils.tensorboard"].SummaryWriter = Writer
    board = TensorBoard(tmp_path, 8)
    board.tick(stats(1.5), 12)
    board.measures({"kid": 0.5}, 12)
    scalars = [("Loss/G/loss", 1.5, 12), ("Progress/tick", 2, 12), "flush", ("Metrics/kid", 0.5, 12), "flush"]
    assert told == [(str(tmp_path), 8), *scalars]
    TensorBoard(tmp_path)
    assert told[-1] == (str(tmp_path), 0), "a run that begins anew in its folder hides all that stood there"


def test_a_full_disk_ends_no_training(tmp_path, monkeypatch):
    """The writer of the package, here a stand-in, has a thread that ends for good with an error of the disk."""
    told, full = [], [False]

    class Writer:
        def __init__(self, folder, purge_step):
            self.broken = False
            self.flush()
            told.append(purge_step)

        def add_scalar(self, name, value, nimg):
            told.append((name, nimg))

        def flush(self):
            self.broken |= full[0]
            if self.broken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        close = flush

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", type(sys)("tensorboard"))
    sys.modules["torch.utils.tensorboard"].SummaryWriter = Writer
    board = TensorBoard(tmp_path)
    for nimg in (4, 8, 12):
        full[0] = nimg < 12
        board.measures({"kid": 0.5}, nimg)
    assert told == [0, ("Metrics/kid", 4), 12, ("Metrics/kid", 12)]
    full[0] = True
    board.close()


KILLED = """
import os, signal, sys, time
from pathlib import Path
now = time.time
time.time = lambda: now() - 60  # event files are read in the order of their names, which tell the second
from torch_utils.stats import Moments
from training.tensorboard import TensorBoard
board = TensorBoard(Path(sys.argv[1]))
for nimg in (4, 8, 12, 16):
    board.tick({"Loss/G/loss": Moments(4, nimg / 10, 0)}, nimg)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_that_continues_shows_each_tick_once(tmp_path):
    """Killed at 16 images, it continues from a state of 8, which is older than the tick that ended there."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment)
    assert killed.returncode == -signal.SIGKILL
    board = TensorBoard(tmp_path, 8)
    for nimg in (8, 12, 16, 20):
        board.tick({"Loss/G/loss": Moments(4, nimg, 0)}, nimg)
    board.close()
    shown = accumulator.EventAccumulator(str(tmp_path))
    shown.Reload()
    events = shown.Scalars("Loss/G/loss")
    assert [event.step for event in events] == [4, 8, 12, 16, 20]
    assert [event.value for event in events] == pytest.approx([0.4, 8, 12, 16, 20])

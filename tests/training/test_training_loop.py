"""A whole run, and runs that go on."""

import json
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dnnlib.files import sha256
from dnnlib.runs import Log
from helpers.drawn import write_archive
from helpers.trainings import tiny_config, tiny_training
from slices.dataset import SliceDataset
from slices.schema import Schema
from torch_utils import checkpoint
from torch_utils.distributed import World
from training.run import Outcome, Run
from training.snapshot import KIND, VERSION, load_generator
from training.state import TrainingState
from training.state_file import cut_back, find_states, newest_state
from training.training_loop import snapshot_is_due, tick_is_over, train

ALONE = World(device=torch.device("cpu"))
EVERY_STEP = 1e-6  # minutes


def stats_of(folder: Path) -> list[dict]:
    """Lines of stats.jsonl without times, memory, and where processes began."""
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    began = "Progress/continued_kimg"
    kept = ("Loss", "Progress", "Health")
    return [{k: v for k, v in line.items() if k.split("/")[0] in kept and k != began} for line in lines]


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    assert outcome.snapshot is not None
    return checkpoint.load(outcome.snapshot, KIND, VERSION).tensors


class Training:
    """A run that may be stopped and go on."""

    def __init__(self, folder: Path, data: Path, kimg: float = 0.064, **changes) -> None:
        folder.mkdir()
        self.folder, self.dataset, self.data = folder, SliceDataset(data), data
        self.config = replace(tiny_config(self.dataset, kimg=kimg, **changes), kimg_per_tick=0.02, snap=2)

    def go(self, evaluate=None, state_minutes: float = EVERY_STEP, **changes) -> Outcome:
        saved = newest_state(self.folder)
        cut_back(self.folder, saved.metadata["lengths"] if saved else {})
        run = Run(
            config=replace(self.config, **changes),
            folder=self.folder,
            data_sha256=sha256(self.data),
            saved=saved,
            state_minutes=state_minutes,
        )
        return train(run, self.dataset, ALONE, Log(self.folder / "log.txt"), evaluate)


def test_another_schema_trains_as_well(tmp_path):
    plain = Schema(contrasts=("t1", "pd", "t2"))
    data = write_archive(tmp_path / "data.zip", schema=plain, count=8)
    outcome = tiny_training(tmp_path, data)
    assert outcome.kimg == 0.016 and not outcome.stopped_by
    assert load_generator(outcome.snapshot).generator(torch.zeros(1, 8)).shape == (1, 3, 16, 16)


def test_ticks_and_snapshots_fall_due(archive):
    """The first tick is one step; snapshots come every `snap` ticks, or only at the end."""
    config = tiny_config(SliceDataset(archive))
    state = TrainingState.initial(config, torch.device("cpu"))
    assert not tick_is_over(config, state)
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


class Killed(BaseException):
    """Ends a run in the middle. Tests with SIGKILL are in tests/test_resume.py."""


def kill_at(monkeypatch, training: Training, killed_at: int, before=lambda trainer: None) -> None:
    """Train until a step. before: is called before each step."""
    from training.training_step import Trainer

    step = Trainer.step

    def dies(self, *arguments):
        if self.state.step == killed_at:
            raise Killed
        before(self)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dies)
        with pytest.raises(Killed):
            training.go()


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """A run that nothing interrupted: its archive, its folder, and the weights at its end."""
    folder = tmp_path_factory.mktemp("straight")
    archive = write_archive(folder / "drawn.zip")
    return archive, folder / "run", weights(Training(folder / "run", archive).go())


def test_a_run_that_was_interrupted_ends_like_one_that_was_not(tmp_path, straight, monkeypatch):
    """Four times. Statistics are equal but for times, and each tick stands there once."""
    archive, undisturbed, wanted = straight
    broken = Training(tmp_path / "b", archive)
    for step in (1, 6, 7, 13):
        kill_at(monkeypatch, broken, step)
        torch.rand(step)  # moves the global random state
    found = weights(broken.go())
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert stats_of(broken.folder) == stats_of(undisturbed)
    lines = (broken.folder / "log.txt").read_text().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("tick")] == ["0", "1", "2", "3"]
    assert len(find_states(broken.folder)) == 2


def test_lines_that_a_full_disk_held_back_are_not_lost_with_the_process(tmp_path, straight, monkeypatch):
    """The disk is full when tick 1 ends, but not when later states are written."""
    archive, undisturbed, _ = straight
    broken = Training(tmp_path / "b", archive)
    flush = Log.flush

    def fill(trainer):
        monkeypatch.setattr(Log, "flush", (lambda self: None) if trainer.state.step == 5 else flush)

    kill_at(monkeypatch, broken, 8, fill)
    broken.go()
    assert stats_of(broken.folder) == stats_of(undisturbed)
    log = (broken.folder / "log.txt").read_text()
    assert [line.split()[1] for line in log.splitlines() if line.startswith("tick")] == ["0", "1", "2", "3"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not list the files that a process has mapped")
def test_a_run_that_goes_on_does_not_hold_its_old_state(tmp_path, archive, monkeypatch):
    """A file that is mapped takes room on the disk after its deletion, and its tensors memory."""
    training = Training(tmp_path / "a", archive)
    kill_at(monkeypatch, training, 3)

    def look(trainer):
        with open("/proc/self/maps", errors="replace") as maps:
            assert not [line for line in maps if "training-state" in line]

    kill_at(monkeypatch, training, 5, look)


def test_a_second_interrupt_does_not_wait_for_the_state(tmp_path, archive, monkeypatch):
    """The first asks to stop after the step. The second comes while the state is being written."""
    training, left, waited = Training(tmp_path / "a", archive), threading.Event(), []
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: waited.append(left.wait(5)))
    monkeypatch.setattr("training.training_step.update_ema", lambda *arguments: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr("training.training_loop.save", lambda *arguments: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        training.go(state_minutes=60)
    assert not waited
    left.set()


def test_a_run_that_is_made_longer_has_the_ticks_of_one_long_run(tmp_path, straight):
    archive, undisturbed, wanted = straight
    longer = Training(tmp_path / "b", archive)
    longer.go(kimg=0.036)  # in the middle of a tick
    assert len(stats_of(longer.folder)) == 3
    found = weights(longer.go())
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert stats_of(longer.folder) == stats_of(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_stop_after_the_step_with_a_state(tmp_path, archive, monkeypatch, number):
    """Ctrl-C saves a snapshot too. The next state of the clock is not yet due."""
    from training.training_step import Trainer

    training, step = Training(tmp_path / "a", archive), Trainer.step

    def interrupted(self, *arguments):
        if self.state.step == 4:
            signal.raise_signal(number)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", interrupted)
    outcome = training.go(state_minutes=60)
    assert outcome.stopped_by == number and outcome.kimg == 0.02
    assert [path.name[-18:-12] for path in find_states(training.folder)] == ["000005", "000001"]
    assert (outcome.snapshot is not None) == (number == signal.SIGINT)
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def test_measures_are_written_and_the_best_snapshot_is_kept(tmp_path, archive):
    values = iter([3.0, 1.0, 2.0, 5.0])
    training, seen = Training(tmp_path / "a", archive, kimg=0.064), []

    def evaluate(generator, kimg):
        seen.append(kimg)
        return {"kd": next(values), "copies": 0}

    run = Run(config=replace(training.config, snap=1), folder=training.folder, data_sha256="", best="kd")
    train(run, training.dataset, ALONE, Log(None), evaluate)
    lines = [json.loads(line) for line in (training.folder / "metric-kd.jsonl").read_text().splitlines()]
    assert [line["value"] for line in lines] == [3, 1, 2] and [line["kimg"] for line in lines] == seen
    assert seen == [0.024, 0.044, 0.064]
    best = load_generator(training.folder / "best-kd.safetensors")
    assert best.info.kimg == 0.044 and (training.folder / "metric-copies.jsonl").exists()

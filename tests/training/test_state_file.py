"""State files: written while training goes on, in spite of kills, full disks and damage."""

import errno
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch

from dnnlib.errors import UserError
from dnnlib.publish import Staged, recover_all
from helpers.commands import ROOT
from helpers.disks import small_disk_at
from torch_utils import checkpoint
from training import state_file
from training.state_file import StateWriter, cut_back, find_states, log_lengths, newest_state, state_name


def tensors(step):
    """A state of every kind of tensor, other for each step."""
    draws = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 3, 3, 3, generator=draws)
    return {
        "G.weight": torch.nn.Parameter(weight.to(memory_format=torch.channels_last)),
        "G.weight.exp_avg": weight.square().to(memory_format=torch.channels_last),
        "D.double": torch.randn(3, 5, generator=draws, dtype=torch.float64).T,
        "D.half": weight.half(),
        "pl_mean": torch.tensor(step + 0.25),
        "counts": torch.tensor([step, 2**40]),
    }


def same(state, step):
    assert state.metadata == {"step": step} and state.tensors.keys() == tensors(step).keys()
    for name, tensor in tensors(step).items():
        assert torch.equal(state.tensors[name], tensor) and state.tensors[name].dtype == tensor.dtype, name
    return True


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(folder, *steps, warn=pytest.fail):
    """Write states of these steps one after the other. Returns the writer."""
    writer = StateWriter(folder, warn)
    for step in steps:
        writer.save(step, tensors(step), {"step": step})
    writer.finish()
    return writer


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_the_newest_two_are_kept_and_come_back_as_they_were(tmp_path):
    (tmp_path / "training-state-best.safetensors").write_text("mine")
    writer = write(tmp_path, 9, 10, 999_999, 1_000_000)
    kept = ["training-state-1000000.safetensors", "training-state-999999.safetensors"]
    assert names(tmp_path) == [*kept, "training-state-best.safetensors"]
    state = newest_state(tmp_path)
    assert same(state, 1_000_000) and state.path == tmp_path / kept[0] and state.remarks == ()
    assert state.tensors["G.weight.exp_avg"].is_contiguous()
    assert writer.seconds > 0 and newest_state(tmp_path / "nothing") is None


def test_a_state_is_what_it_was_when_saving_began(tmp_path, monkeypatch):
    """The writing thread waits until the caller has changed everything."""
    changed, real = threading.Event(), checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: (changed.wait(60), real(*arguments)))
    live, metadata = tensors(1), {"step": 1}
    writer = StateWriter(tmp_path, pytest.fail)
    writer.save(1, live, metadata)
    for tensor in live.values():
        tensor.detach().zero_()
    metadata["step"] = 2
    assert not find_states(tmp_path)
    changed.set()
    writer.finish()
    assert same(newest_state(tmp_path), 1)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from dnnlib import publish
from torch_utils import checkpoint
from training import state_file
from test_state_file import tensors

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def after(real):
    return lambda *arguments, **options: (real(*arguments, **options), die())

unlink = Path.unlink

def die_at_state(path, *arguments, **options):
    die() if path.name.startswith("training-state") else unlink(path, *arguments, **options)

def die_after_state(path, *arguments, **options):
    unlink(path, *arguments, **options)
    path.name.startswith("training-state") and die()

def half(file, *arguments):
    file.write(b"half"); file.flush(); die()

STAGES = {
    "before": (checkpoint, "_write", die),
    "in": (checkpoint, "_write", half),
    "after": (checkpoint, "_write", after(checkpoint._write)),
    "synced": (publish, "_sync", after(publish._sync)),
    "renamed": (os, "replace", after(os.replace)),
    "clearing": (Path, "unlink", die),
    "cleared": (Path, "unlink", after(unlink)),
    "deleting": (Path, "unlink", die_at_state),
    "deleted": (Path, "unlink", die_after_state),
}
torch.set_num_threads(1)
for stage, (owner, name, hook) in STAGES.items():
    folder = Path(sys.argv[1], stage)
    folder.mkdir()
    if (child := os.fork()) == 0:
        writer = state_file.StateWriter(folder, print)
        for step in (1, 2, 3):
            if step == 3:
                writer.finish()
                setattr(owner, name, hook)
            writer.save(step, tensors(step), {"step": step})
        writer.finish()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, stage
"""
# Steps of the states that a folder holds after a kill in this stage.
LEFT = {
    "before": [2, 1],
    "in": [2, 1],
    "after": [2, 1],
    "synced": [2, 1],
    "renamed": [3, 2, 1],
    "clearing": [3, 2, 1],
    "cleared": [3, 2, 1],
    "deleting": [3, 2, 1],
    "deleted": [3, 2],
}


def test_a_writer_that_is_killed_at_any_stage_leaves_two_states(tmp_path):
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/training")))
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], env={**os.environ, "PYTHONPATH": paths}, check=True)
    assert names(tmp_path) == sorted(LEFT)
    for stage, steps in LEFT.items():
        folder = tmp_path / stage
        assert [path.name for path in find_states(folder)] == [state_name(step) for step in steps]
        state = newest_state(folder)
        assert same(state, steps[0]) and not state.remarks
        recover_all(folder)
        assert names(folder) == sorted(state_name(step) for step in steps)
        # The run goes on: the resumed state and the new one stay.
        writer = StateWriter(folder, pytest.fail, resumed=state.path)
        writer.save(4, tensors(4), {"step": 4})
        writer.finish()
        assert names(folder) == [state_name(steps[0]), state_name(4)]


def test_leftovers_of_killed_writers_go_and_all_else_stays(tmp_path):
    """A hidden folder of a living process, of a killed one (its lock is free), and one of somebody else."""
    (tmp_path / ".thesis.7.part").mkdir()
    (tmp_path / ".thesis.7.part" / "lock").write_text("mine")
    (tmp_path / "log.txt").write_text("line\n")
    with Staged(tmp_path / "fakes000001.png") as alive:
        alive.place(tmp_path / "fakes000001.png").write_text("half")
        for name in ("network-snapshot-000001.safetensors", "fakes000001.png"):
            shutil.copytree(tmp_path / ".fakes000001.png.0.part", tmp_path / f".{name}.1.part")
        recover_all(tmp_path)
        assert names(tmp_path) == [".fakes000001.png.0.part", ".thesis.7.part", "log.txt"]


@pytest.mark.parametrize("place", [-1, 300, None])
def test_a_damaged_newest_state_is_named_and_the_older_one_taken(tmp_path, place):
    """place: of the byte that flips; None: the end of the file is lost."""
    write(tmp_path, 1, 2)
    newest = tmp_path / state_name(2)
    flip(newest, place) if place else os.truncate(newest, newest.stat().st_size - 1)
    state = newest_state(tmp_path)
    (remark,) = state.remarks
    assert same(state, 1) and str(newest) in remark and "damaged" in remark and f"Taking {state_name(1)}" in remark
    # Whole files are never deleted for the sake of a damaged one.
    writer = StateWriter(tmp_path, pytest.fail, resumed=state.path)
    writer.save(2, tensors(2), {"step": 2})
    writer.finish()
    assert same(newest_state(tmp_path), 2) and names(tmp_path) == [state_name(1), state_name(2)]
    flip(newest)
    flip(state.path)
    with pytest.raises(UserError, match=f"{state_name(2)}.* damaged.*{state_name(1)}.* damaged"):
        newest_state(tmp_path)


def test_a_damaged_state_of_later_steps_goes_before_the_whole_one(tmp_path):
    write(tmp_path, 1, 5)
    flip(tmp_path / state_name(5))
    writer = StateWriter(tmp_path, pytest.fail, resumed=newest_state(tmp_path).path)
    writer.save(3, tensors(3), {"step": 3})
    writer.finish()
    assert names(tmp_path) == [state_name(1), state_name(3)]


def test_a_newer_version_or_another_kind_is_no_damage(tmp_path):
    write(tmp_path, 1)
    checkpoint.save(tmp_path / state_name(2), tensors(2), {}, state_file.KIND, version=99)
    with pytest.raises(UserError, match="version 99 .* reads version 1"):
        newest_state(tmp_path)
    checkpoint.save(tmp_path / state_name(2), tensors(2), {}, "network snapshot")
    with pytest.raises(UserError, match="is a network snapshot; expected a training state"):
        newest_state(tmp_path)


def test_values_that_are_not_finite_are_never_written(tmp_path):
    large = {"large": torch.full((9,), 3e38), "half": torch.full((9,), 6e4, dtype=torch.float16)}  # sums overflow
    writer = write(tmp_path, 1)
    for value in (float("nan"), float("inf"), -float("inf")):
        spoiled = tensors(2)
        spoiled["D.double"][4, 1] = value
        with pytest.raises(FloatingPointError, match="D.double holds values that are not finite"):
            writer.save(2, spoiled, {})
    writer.save(3, large, {"step": 3})
    writer.finish()
    assert names(tmp_path) == [state_name(1), state_name(3)]
    assert torch.equal(newest_state(tmp_path).tensors["large"], large["large"])


def test_a_mistake_of_the_caller_is_not_lost_in_the_thread(tmp_path):
    writer = StateWriter(tmp_path, pytest.fail)
    writer.save(1, tensors(1), {"loss": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        writer.finish()
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KB."""
    with small_disk_at(tmp_path / "small", "64k") as folder:
        yield folder


def test_a_full_disk_warns_and_the_next_write_tries_again(small_disk):
    warnings = []
    writer = write(small_disk, 1, 2, warn=warnings.append)
    assert not warnings
    (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    for step in (3, 4):
        writer.save(step, tensors(step), {"step": step})
        with pytest.raises(
            UserError, match=f"{state_name(step)}: No space left.*; free .* GB there; the newest .*2.safe"
        ):
            writer.finish()
        assert names(small_disk) == ["other", state_name(1), state_name(2)]
    assert len(warnings) == 2 and "warning: no training state was written" in warnings[1] and "\n" not in warnings[1]
    (small_disk / "other").unlink()
    writer.save(5, tensors(5), {"step": 5})
    writer.finish()
    assert names(small_disk) == [state_name(2), state_name(5)] and same(newest_state(small_disk), 5)


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_last_moment(tmp_path, monkeypatch, function):
    """As where room is made only when a file is closed: a quota, a network's disk."""

    def full(*arguments):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    warnings = []
    writer = write(tmp_path, 1, warn=warnings.append)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, full)
        writer.save(2, tensors(2), {"step": 2})
        with pytest.raises(UserError, match="quota"):
            writer.finish()
    assert len(warnings) == 1 and names(tmp_path) == [state_name(1)]


def test_logs_are_cut_back_to_what_they_were(tmp_path):
    for name, text in {"log.txt": "one\n", "stats.jsonl": "{}\n", "metric-fid.jsonl": "1\n"}.items():
        (tmp_path / name).write_text(text)
    lengths = log_lengths(tmp_path)
    assert lengths == {"log.txt": 4, "stats.jsonl": 3, "metric-fid.jsonl": 2}
    for name in (*lengths, "metric-late.jsonl", "notes.txt"):
        with open(tmp_path / name, "a") as file:
            file.write("tw")  # half a line of a killed process
    assert cut_back(tmp_path, {**lengths, "notes.txt": 1, "../notes.txt": 1}) == []
    assert log_lengths(tmp_path) == lengths and (tmp_path / "log.txt").read_text() == "one\n"
    assert (tmp_path / "notes.txt").read_text() == "tw"
    (tmp_path / "log.txt").write_text("on")
    (tmp_path / "metric-fid.jsonl").unlink()
    remarks = cut_back(tmp_path, lengths)
    assert [remark.split()[1] for remark in remarks] == ["log.txt", "metric-fid.jsonl"]
    assert all("has lost lines" in remark for remark in remarks) and (tmp_path / "log.txt").read_text() == "on"

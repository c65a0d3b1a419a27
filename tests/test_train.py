"""train.py: options, files of a run folder, mistakes."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from click.testing import CliRunner
from PIL import Image

import slices.dataset
import train
from dnnlib.files import write_json
from dnnlib.runs import held_run_folder
from helpers.commands import ROOT
from helpers.drawn import draw_slice, write_archive
from helpers.trainings import TINY_OPTIONS
from slices.archive.writer import ArchiveWriter
from slices.dataset import SliceDataset
from slices.schema import BRATS
from training import training_loop
from training.beginning import describe_run
from training.options import DataConfig, RunOptions
from training.resuming import Request
from training.snapshot import load_generator

NO_NUMBERS = ["kimg=inf", "kimg=nan", "lrate=nan", "lrate=inf", "lrate=0", "gamma=nan", "pl-weight=inf"]


@pytest.mark.parametrize("cfg, cond", [("auto", False), ("stylegan2", True), ("cifar", False)])
def test_a_run_leaves_its_files(tmp_path, cfg, cond):
    data = write_archive(tmp_path / "data.zip", labels=True)
    options = [f"--outdir={tmp_path / 'runs'}", f"--data={data}", f"--cfg={cfg}", f"--cond={int(cond)}", *TINY_OPTIONS]
    result = CliRunner().invoke(train.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == f"00000-data{'-cond' * cond}-{cfg}-batch4"
    lines = [line for line in (folder / "log.txt").read_text().splitlines() if line.startswith("tick")]
    assert all(word in lines[-1] for word in ("kimg 0.0", "sec/tick", "sec/kimg", "maintenance", "cpumem", "gpumem"))
    stats = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert stats[-1]["Progress/kimg"]["mean"] == pytest.approx(0.016)
    assert {"Loss/G/loss", "Loss/D/loss", "Loss/D/label_share"} <= set(stats[0])
    assert 0 < stats[0]["Loss/D/label_share"]["mean"] < 1
    for name in ("reals.png", "fakesinit.png", "fakes000000.png"):
        Image.open(folder / name).verify()
    loaded = load_generator(folder)
    assert loaded.info.schema == BRATS and loaded.info.kimg == pytest.approx(0.016)
    assert loaded.generator.config.c_dim == (2 if cond else 0)
    assert loaded.info.label_names == (("HGG", "LGG") if cond else None)
    assert loaded.info.label_counts == ((12, 12) if cond else None)
    assert ("Classes: HGG (12 slices), LGG (12 slices)" in (folder / "log.txt").read_text()) == cond
    assert json.loads((folder / "training_options.json").read_text())["config"]["batch"] == 4


def test_held_out_patients_are_refused(tmp_path):
    """An archive that shares patients with an archive of --exclude is refused. --exclude may be repeated."""
    real = write_archive(tmp_path / "train.zip", part="train")
    test = write_archive(tmp_path / "test.zip", count=6, part="test", seed=1)
    fake = write_archive(tmp_path / "fake.zip", count=2, per_patient=1, seed=2, seen=["drawn0-0", "drawn0-1"])
    common = [f"--outdir={tmp_path / 'runs'}", *TINY_OPTIONS]

    def invoke(*options):
        return CliRunner().invoke(train.main, [*common, *(str(o) for o in options)])

    for options, message in [
        (["--data", test], f"{test}: 6 of its 6 slices (2 of its 2 patients) are of the test part"),
        (["--data", test, "--dry-run"], "are of the test part"),
        (["--data", test, "--subset", 1], "are of the test part"),
        (["--data", real, "--exclude", test, "--exclude", real], "slices of drawn0-0, drawn0-1, drawn0-2 and 5 more;"),
        (["--data", fake, "--exclude", real], "generated slices of a GAN that learned from drawn0-0, drawn0-1;"),
        (["--data", real, "--exclude", fake], "their GAN learned from count), but holds slices of drawn0-0"),
        (["--data", real, "--exclude", tmp_path / "none.zip"], "none.zip: no such file"),
    ]:
        result = invoke(*options)
        assert result.exit_code == 2 and message in result.output, result.output
        assert len(result.output.strip().splitlines()) == 1 and not (tmp_path / "runs").exists()
    result = invoke("--data", real, "--exclude", test)
    assert result.exit_code == 0 and f"{real} shares no patient with {test}" in result.output, result.output


def test_dry_run_writes_nothing(tmp_path, archive):
    result = CliRunner().invoke(train.main, [f"--outdir={tmp_path / 'runs'}", f"--data={archive}", "--batch=8", "-n"])
    assert result.exit_code == 0 and not (tmp_path / "runs").exists()
    assert '"r1_gamma"' in result.output and "By hand: batch 8\n`auto` is tuned for" in result.output


def test_dry_run_knows_the_processes(tmp_path, archive):
    """It starts none of them, so it may ask for more than there are."""
    command = [f"--outdir={tmp_path / 'runs'}", f"--data={archive}", "--gpus=5", "-n"]
    result = CliRunner().invoke(train.main, command)
    assert result.exit_code == 0 and '"batch": 60,' in result.output and '"batch_gpu": 12,' in result.output
    assert "batch 60 instead of 64, which does not divide over 5 processes" in result.output
    assert not (tmp_path / "runs").exists()


def test_learning_rate_by_hand(tmp_path, archive):
    options = [f"--outdir={tmp_path / 'runs'}", f"--data={archive}", "--batch=8", "--lrate=0.01", "-n"]
    result = CliRunner().invoke(train.main, options)
    assert result.exit_code == 0 and '"lrate": 0.01' in result.output, result.output
    assert "By hand: batch 8, lrate 0.01\n" in result.output and "learning rate" not in result.output


@pytest.mark.parametrize(
    "make, options, message",
    [
        (lambda p: p, [], "no such file"),
        (lambda p: p.write_bytes(b"nonsense"), [], "not a complete zip archive"),
        (write_archive, ["--cond=1"], "no class labels, which --cond needs"),
        (write_archive, ["--subset=99"], "--subset 99"),
        (write_archive, ["--batch=5"], "does not divide into groups"),
        (
            write_archive,
            ["--batch=30", "--gpus=4", "-n"],
            "30 over 4 GPUs does not divide into groups of 4 on each: use",
        ),
        (write_archive, ["--batch=32", "--batch-gpu=16", "--gpus=4", "-n"], "use --batch 64, or --batch-gpu 8"),
        (write_archive, ["--gpus=0"], "--gpus 0: expected a whole number from 1"),
        (write_archive, ["--state-minutes=0"], "--state-minutes 0: expected a number above 0"),
        (write_archive, ["--max-bad-steps=0"], "--max-bad-steps 0: expected a whole number from 1"),
        (write_archive, ["--best=fid"], "--best=fid: nothing is measured"),
        (write_archive, ["--run-dir=x"], "--outdir and --run-dir exclude each other"),
        (write_archive, ["--outdir=/dev/null/runs"], "a file is where a folder is needed"),
    ],
)
def test_mistakes_end_with_one_message_and_code_2(tmp_path, make, options, message):
    data = tmp_path / "data.zip"
    make(data)
    result = CliRunner().invoke(
        train.main, [f"--outdir={tmp_path / 'runs'}", f"--data={data}", *TINY_OPTIONS, *options]
    )
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_label_maps_that_are_not_one_hot_are_refused(tmp_path):
    """Label maps of 0 and 1 instead of 0 and 255 are refused: the GAN would see blank labels."""
    stored = draw_slice(np.random.RandomState(0), 16)
    stored[4:] //= 255
    with ArchiveWriter(tmp_path / "data.zip", BRATS, 16, {}) as archive:
        archive.add(stored, patient="a")
    options = [f"--outdir={tmp_path / 'runs'}", f"--data={tmp_path / 'data.zip'}", *TINY_OPTIONS]
    result = CliRunner().invoke(train.main, options)
    assert result.exit_code == 2 and "00000000.npy are not one-hot" in result.stderr, result.output


@pytest.mark.parametrize("memory", [0, 1 << 20], ids=["in a worker", "in memory"])
def test_damage_met_while_training_is_one_message(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(slices.dataset, "MEMORY", memory)
    data = write_archive(tmp_path / "data.zip", count=8)
    content = bytearray(data.read_bytes())
    with zipfile.ZipFile(data) as archive:
        third = archive.getinfo(SliceDataset(data).archive.info.slices[2].file)
    content[third.header_offset + 90] ^= 0xFF
    data.write_bytes(content)
    options = [f"--outdir={tmp_path / 'runs'}", f"--data={data}", *TINY_OPTIONS, "--workers=1", "--kimg=1"]
    result = CliRunner().invoke(train.main, options)
    assert result.exit_code == 2 and "Traceback" not in result.output and "worker" not in result.output
    assert f"{data}: the member {third.filename} is damaged" in result.output


@pytest.mark.parametrize("option", [*NO_NUMBERS, "seed=5000000000"])
def test_numbers_that_are_none(tmp_path, archive, option):
    result = CliRunner().invoke(train.main, [f"--outdir={tmp_path / 'runs'}", f"--data={archive}", f"--{option}"])
    assert result.exit_code == 2 and not (tmp_path / "runs").exists(), result.output


def test_run_folders_are_numbered(tmp_path, archive):
    for _ in range(2):
        options = [f"--outdir={tmp_path / 'runs'}", f"--data={archive}", *TINY_OPTIONS]
        assert CliRunner().invoke(train.main, options, catch_exceptions=False).exit_code == 0
    assert sorted(p.name[:5] for p in (tmp_path / "runs").iterdir()) == ["00000", "00001"]


def test_hostile_names_do_not_reach_the_run_folder():
    assert describe_run(Request(DataConfig("../a b;c.zip"), RunOptions(), {})) == "a_b_c-auto"
    request = Request(DataConfig("ü\n.zip", mirror=True), RunOptions(), {"batch": 4, "aug": "ada"})
    assert describe_run(request) == "__-mirror-auto-batch4-ada"


# --- runs that go on --------------------------------------------------------------------------------------------------


def invoke(*arguments):
    return CliRunner().invoke(train.main, [str(a) for a in arguments])


def content(folder):
    """Every file below a folder, but locks: path -> bytes and time of change."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def refused(folder, command, *words):
    """Assert that a command ends with one message, exit code 2, and a folder as it was. Returns its output."""
    before = content(folder)
    result = invoke(*command)
    assert result.exit_code == 2 and result.output.startswith("error: "), result.output
    assert all(str(word) in result.output for word in words), result.output
    assert content(folder) == before
    return result.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of four steps in RUN, with its archive beside it. Not to be changed."""
    parent = tmp_path_factory.mktemp("finished")
    write_archive(parent / "data.zip")
    result = invoke(f"--run-dir={parent / 'RUN'}", f"--data={parent / 'data.zip'}", *TINY_OPTIONS)
    assert result.exit_code == 0, result.output
    return parent


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, whose archive is where it was."""
    return Path(shutil.copytree(finished / "RUN", tmp_path / "run"))


def test_one_command_begins_ends_and_says_so(finished, run):
    """With --run-dir, the same command does nothing once the run is finished; so does --resume."""
    before = content(run)
    for call in ([f"--run-dir={run}", f"--data={finished / 'data.zip'}", *TINY_OPTIONS], [f"--resume={run}"]):
        result = invoke(*call)
        assert result.exit_code == 0, result.output
        assert result.output == f"{run} is finished: it has trained for 0.016 kimg, and --kimg can make it longer\n"
        assert content(run) == before


def test_a_longer_run_is_that_of_one_call(finished, run, tmp_path):
    """Four steps and two more, from a copy of the archive under another name, are the six steps of one run."""
    archive = Path(shutil.copy(finished / "data.zip", tmp_path / "copy.zip"))
    for command, folder in [
        ((f"--resume={run}", f"--data={archive}", "--kimg=0.024"), run),
        ((f"--run-dir={tmp_path / 'one'}", f"--data={archive}", *TINY_OPTIONS, "--kimg=0.024"), tmp_path / "one"),
    ]:
        result = invoke(*command)
        assert result.exit_code == 0, result.output
        assert [p.name for p in folder.glob("network-*")] == ["network-snapshot-000000.safetensors"]
    with safe_open(run) as longer, safe_open(tmp_path / "one") as one:
        names = set(longer.keys())
        assert names == set(one.keys()) and len(names) > 50
        assert all(torch.equal(longer.get_tensor(name), one.get_tensor(name)) for name in names)
    log = (run / "log.txt").read_text()
    assert log.count("tick 0 ") == log.count("tick 1 ") == 1 and "training-state-000004" in log
    assert json.loads((run / "training_options.json").read_text())["config"]["kimg"] == 0.024
    assert invoke(f"--resume={run}").output.startswith(f"{run} is finished")


def safe_open(run):
    return safetensors.safe_open(run / "network-snapshot-000000.safetensors", framework="pt")


def test_a_run_without_a_state_begins_anew(finished, run):
    """As a run that was killed before its first state; its lines in the log go. Both ways lead on, as failures say."""
    for call in ([f"--resume={run}"], [f"--run-dir={run}", f"--data={finished / 'data.zip'}", *TINY_OPTIONS]):
        for path in run.glob("training-state-*"):
            path.unlink()
        refused(run, call, "has snapshots, but no state to continue from: begin in another folder")
        for path in run.glob("network-*"):
            path.unlink()
        result = invoke(*call)
        assert result.exit_code == 0, result.output
        log = (run / "log.txt").read_text()
        assert log.count("tick 0 ") == 1 and log.startswith("The run has no state yet: it begins anew\nBy hand: ")
        assert len((run / "stats.jsonl").read_text().splitlines()) == 2
        with safe_open(run) as again, safe_open(finished / "RUN") as first:
            assert all(torch.equal(again.get_tensor(name), first.get_tensor(name)) for name in first.keys())


def test_ctrl_c_at_once(run, monkeypatch):
    """The second Ctrl-C has the status of the first, and the last line tells how to go on."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_loop, "train", interrupted)
    result = invoke(f"--resume={run}", "--kimg=0.1")
    assert result.exit_code == 130, result.output
    assert result.output.endswith(f"Continue with: python train.py --resume={run}\n")


def test_runs_that_can_not_go_on(finished, run, tmp_path):
    """Each is one message, before anything is made or changed."""
    data = finished / "data.zip"
    other = write_archive(tmp_path / "other.zip", seed=1)
    small = write_archive(tmp_path / "small.zip", resolution=8)
    same = [f"--run-dir={run}", f"--data={data}", *TINY_OPTIONS]
    resume = f"--resume={run}"
    for options, words in [
        ([f"--resume={tmp_path / 'none'}"], ["no such folder"]),
        ([f"--resume={tmp_path}"], ["no run of train.py is there"]),
        ([f"--resume={run / 'network-snapshot-000000.safetensors'}"], ["is a snapshot", f"--resume={run}"]),
        ([f"--resume={run / 'training-state-000004.safetensors'}"], ["is a file", f"--resume={run}"]),
        ([resume, f"--data={other}"], [other, data, "is not the archive that this run learns from"]),
        ([resume, f"--data={small}"], [small, data, "is not the archive that this run learns from"]),
        ([resume, "--gpus=3", "-n"], ["--batch 4 over 3 GPUs", "use --gpus with one of 1"]),
        ([resume, "--batch-gpu=2"], ["--batch-gpu 2 does not divide into groups of 4, which this run has"]),
        ([resume, f"--exclude={data}"], ["slices of drawn0-0"]),
        ([f"--run-dir={tmp_path}", f"--data={data}"], ["no run of train.py: choose an empty or a new folder"]),
        ([f"--run-dir={data}", f"--data={data}"], ["is a file"]),
        ([f"--run-dir={run}"], ["--data is missing"]),
        ([f"--run-dir={tmp_path / 'new'}"], ["--data is missing"]),
        ([f"--run-dir={tmp_path / 'new'}", f"--data={data}", "--batch=6"], ["--batch 6 does not divide"]),
    ]:
        assert refused(tmp_path, options, *words).count("\n") == 1
    table = ["holds a run with other options", "field", "run", "now"]
    refused(tmp_path, [resume, "--seed=1", "--mirror=1", "--kimg=9"], *table, "--seed", "--mirror")
    assert "--kimg" not in refused(tmp_path, [*same, "--batch=8", "--kimg=9"], *table, "--batch")
    assert not (tmp_path / "new").exists()


def test_damaged_folders_are_refused(finished, run):
    older, state = sorted(run.glob("training-state-*"))
    older.unlink()
    good, options = state.read_bytes(), json.loads((run / "training_options.json").read_text())
    state.write_bytes(good[:-100] + bytes(100))
    refused(run, [f"--resume={run}", "--kimg=1"], state.name, "can be read: begin in another folder")
    state.write_bytes(good)
    for change, word in [({"version": 99}, "version 99"), ({"config": 7}, "expected an object")]:
        write_json(run / "training_options.json", {**options, **change})
        refused(run, [f"--resume={run}"], "training_options.json", word)
    # A state of another run, put there by hand.
    options["config"]["lrate"] = options["request"]["recipe"]["lrate"] = 0.5
    write_json(run / "training_options.json", options)
    refused(run, [f"--resume={run}", "--kimg=1"], state.name, "--lrate")


def test_an_archive_that_has_moved_must_be_named(finished, run, tmp_path):
    options = json.loads((run / "training_options.json").read_text())
    options["request"]["data"]["path"] = str(tmp_path / "gone.zip")
    write_json(run / "training_options.json", options)
    refused(run, [f"--resume={run}"], "gone.zip: this run's archive is not there", "--data")
    assert invoke(f"--resume={run}", f"--data={finished / 'data.zip'}").exit_code == 0


def test_a_folder_in_use_is_refused(finished, run):
    with held_run_folder(run):
        refused(run, [f"--resume={run}", "--kimg=1"], "in use by another training", f"process {os.getpid()}")


def test_two_processes_show_one_message(tmp_path, archive):
    command = [
        sys.executable,
        "train.py",
        f"--run-dir={tmp_path / 'run'}",
        f"--data={archive}",
        "--gpus=2",
        "--batch=30",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not done.stdout and not (tmp_path / "run").exists()
    assert done.stderr == "error: --batch 30 over 2 GPUs does not divide into groups of 4 on each: use 24 or 32\n"


@pytest.mark.slow
def test_torchrun_says_how_many_processes_there_are(tmp_path, archive):
    command = [f"--run-dir={tmp_path / 'run'}", f"--data={archive}", "--gpus=3"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "train.py", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert line == "error: --gpus 3, but torchrun has started 2 processes: leave out --gpus"
    assert done.returncode and not (tmp_path / "run").exists()


def test_as_many_processes_as_there_are(tmp_path, archive, monkeypatch):
    """A GPU takes one process."""
    command = [f"--outdir={tmp_path / 'runs'}", f"--data={archive}", "--gpus=4"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused(tmp_path, command, "4", "2")
    assert not (tmp_path / "runs").exists()

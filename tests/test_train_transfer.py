"""train.py --transfer and --freezed, as a user calls them."""

import json
import shutil

import pytest
from click.testing import CliRunner

import generate
import segmentation.__main__
import train
from dnnlib.files import sha256
from helpers.commands import ROOT
from helpers.drawn import ONE_CLASS, write_archive
from helpers.runs import equal, go, relative_difference, state_of, stats_of
from helpers.trainings import TINY_OPTIONS
from slices.archive.reader import ArchiveReader
from torch_utils import checkpoint
from training.snapshot import KIND, VERSION, load_generator
from training.training_step import Trainer

PKL = ROOT / "tests" / "golden" / "published_snapshot.pkl"
SNAPSHOT = "network-snapshot-000000.safetensors"
SPECIAL = ("--aug=ada", "--freezed=3")
PATIENTS = {seed: tuple(f"drawn{seed}-{n}" for n in range(8)) for seed in (0, 1)}


def invoke(*arguments, command=train.main, expected=0):
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    assert result.exit_code == expected and "Traceback" not in result.output, result.output
    return result.output


def refused(*arguments, **more):
    return invoke(*arguments, expected=2, **more)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run A of four steps on the patients drawn0-*, and other archives beside it. Not to be changed."""
    folder = tmp_path_factory.mktemp("place")
    write_archive(folder / "a.zip", labels=True)
    write_archive(folder / "b.zip", seed=1, labels=True)
    invoke(f"--run-dir={folder / 'A'}", f"--data={folder / 'a.zip'}", *TINY_OPTIONS)
    return folder


@pytest.fixture(autouse=True)
def no_sheets(monkeypatch):
    """To draw them takes half of such a short run. The runs of `place` and `transferred` have theirs."""
    monkeypatch.setattr("training.reporter.Reporter._save_sheet", lambda *arguments: None)


def begin(place, folder, *options, data="b.zip"):
    """Words of a command that begins on other patients with the weights of A."""
    return [f"--run-dir={folder}", f"--data={place / data}", f"--transfer={place / 'A'}", *TINY_OPTIONS, *options]


@pytest.fixture(scope="module")
def transferred(place):
    """A run B that has begun with the weights of A, and what it printed. Not to be changed."""
    output = invoke(*begin(place, place / "B", *SPECIAL, "--state-minutes=0.000001"))
    return place / "B", output


def test_the_first_fakes_are_those_of_the_source(place, transferred):
    """The same latents, and the same averaged generator: the pictures are the same to the byte."""
    first, last = (place / "B" / "fakesinit.png").read_bytes(), (place / "A" / "fakes000000.png").read_bytes()
    assert first == last != (place / "A" / "fakesinit.png").read_bytes()
    assert (place / "B" / "fakes000000.png").read_bytes() != first, "it has learned"


def test_what_a_run_remembers_of_its_beginning(place, transferred):
    folder, output = transferred
    config = json.loads((folder / "training_options.json").read_text())["config"]
    digest = sha256(place / "A" / SNAPSHOT)
    assert config["transfer"] == {"name": SNAPSHOT, "sha256": digest, "kimg": 0.016, "share": 1.0}
    assert config["ema_ramp"] is None and config["augment"]["kimg"] == 100
    info = load_generator(folder).info
    assert info.kimg == 0.016 and info.training.transfer.sha256 == digest
    assert info.patients == (*PATIENTS[0], *PATIENTS[1]) and not info.more_patients
    log = (folder / "log.txt").read_text()
    frozen = "Frozen in the discriminator: b16.fromrgb, b16.conv0, b16.conv1\n"
    for words in (f"Transfer from {place / 'A' / SNAPSHOT}", "together", "100 %", "learned from 8 patients", frozen):
        assert words in log and words in output
    assert "Skipped" not in output and "Reasons" not in output and "ramp" not in output


def test_the_leak_guard_knows_the_patients_of_the_source(place, transferred, tmp_path):
    """From A to B to C, to an archive of fakes, to a U-Net: the patients of all are known."""
    folder, _ = transferred
    write_archive(tmp_path / "c.zip", seed=2, count=4)
    command = [f"--run-dir={tmp_path / 'C'}", f"--data={tmp_path / 'c.zip'}", f"--transfer={folder / SNAPSHOT}"]
    invoke(*command, *TINY_OPTIONS, "--kimg=0.004")
    # The run goes on without its source, but it still knows.
    assert "learned from drawn0-0" in refused(f"--resume={tmp_path / 'C'}", "--kimg=1", f"--exclude={place / 'a.zip'}")
    fakes = tmp_path / "fake.zip"
    invoke(f"--network={tmp_path / 'C'}", "--seeds=0-3", f"--dest={fakes}", command=generate.main)
    assert ArchiveReader(fakes).info.seen == (*PATIENTS[0], *PATIENTS[1], "drawn2-0", "drawn2-1")
    unet = ["train", f"--data={fakes}", f"--outdir={tmp_path / 'unet'}", "--steps=1", f"--exclude={place / 'a.zip'}"]
    told = refused(*unet, command=segmentation.__main__.main)
    assert "generated slices of a GAN that learned from drawn0-0, drawn0-1, drawn0-2 and 5 more" in told


class Killed(BaseException):
    """Ends a run in the middle. Tests with SIGKILL are in tests/test_resume.py."""


def kill_at(monkeypatch, killed_at, command):
    step = Trainer.step

    def dies(self, *arguments):
        if self.state.step == killed_at:
            raise Killed
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dies)
        with pytest.raises(Killed):
            CliRunner().invoke(train.main, command, catch_exceptions=False)


def test_a_run_that_was_killed_ends_like_one_that_was_not(place, transferred, tmp_path, monkeypatch):
    """First before it has a state: it begins anew, with the same file. Then it has one, and the file is gone."""
    shutil.copytree(place / "A", tmp_path / "A")
    write_archive(tmp_path / "b.zip", seed=1, labels=True)
    command = begin(tmp_path, tmp_path / "B", *SPECIAL, "--state-minutes=0.000001")
    kill_at(monkeypatch, 0, command)
    # A later snapshot of the source, which a command that begins would take.
    shutil.copy(place / "B" / SNAPSHOT, tmp_path / "A" / "network-snapshot-000001.safetensors")
    kill_at(monkeypatch, 2, command)
    log = (tmp_path / "B" / "log.txt").read_text()
    assert log.startswith("The run has no state yet: it begins anew\n") and log.count("Transfer from") == 1
    shutil.rmtree(tmp_path / "A")
    output = invoke(*command)
    assert "Continuing from training-state-00000" in output and "Transfer from" not in output
    straight, _ = transferred
    assert equal(state_of(tmp_path / "B").tensors, state_of(straight).tensors)
    assert stats_of(tmp_path / "B") == stats_of(straight)
    mine, wanted = (checkpoint.load(run / SNAPSHOT, KIND, VERSION) for run in (tmp_path / "B", straight))
    assert equal(mine.tensors, wanted.tensors) and mine.metadata == wanted.metadata


def test_a_source_that_has_changed_before_the_first_state(place, tmp_path, monkeypatch):
    """The run may have begun with other weights than those that the file has now."""
    source = shutil.copytree(place / "A", tmp_path / "A") / SNAPSHOT
    write_archive(tmp_path / "b.zip", seed=1)
    kill_at(monkeypatch, 0, begin(tmp_path, tmp_path / "B"))
    shutil.copy(place / "B" / SNAPSHOT, source)
    resume = f"--resume={tmp_path / 'B'}"
    told = refused(resume)
    assert f"{source} (SHA-256 " in told and "has changed since this run began" in told
    source.unlink()
    assert f"{source}: this run begins with its weights, but it is not there any more; --transfer gives" in refused(
        resume
    )
    elsewhere = shutil.copy(place / "A" / SNAPSHOT, tmp_path / "other.safetensors")
    invoke(resume, f"--transfer={elsewhere}", "-n")


def test_runs_that_go_on_with_another_source(place, transferred, tmp_path):
    """The state wins, whatever lies where the source was; another source than at the beginning is a mistake."""
    folder, _ = transferred
    again = begin(place, folder, *SPECIAL)
    for command in (again, [f"--resume={folder}"], [f"--resume={folder}", f"--transfer={place / 'A' / SNAPSHOT}"]):
        assert "is finished" in invoke(*command)
    told = refused(f"--resume={folder}", f"--transfer={folder}")
    assert f"is not what this run began with, {place / 'A'} (SHA-256" in told
    assert "this run began without" in refused(f"--resume={place / 'A'}", f"--transfer={folder}")
    without = [word for word in again if not word.startswith("--transfer")]
    assert f"this run began with --transfer={place / 'A'}: give that again" in refused(*without)


@pytest.mark.parametrize(
    "options, words",
    [
        (
            ["--exclude={place}/a.zip"],
            "learned from drawn0-0, drawn0-1, drawn0-2 and 5 more, of {place}/a.zip (--exclude)",
        ),
        (["--data={place}/split.zip"], "of the test part of the split of {place}/split.zip"),
        (["--no-patients=1"], "--no-patients, but {place}/A names 8 patients: drawn0-0,"),
        (
            ["--cmax=2"],
            "--force begins all the same:\n\n  feature maps, cbase 64 and cmax 8 → 64 and 2: layers of other",
        ),
        (["--cmax=2"], "\n  --cmax=8 would copy all\n"),
        (
            ["--transfer={place}/A/training-state-000004.safetensors"],
            "is a state; it takes a snapshot, or the run folder",
        ),
        (["--transfer={place}/none"], "none: no such file"),
        (["--transfer={place}"], "{place}: no network-snapshot-NNNNNN.safetensors in this folder"),
        (
            ["--transfer={place}/a.zip"],
            "a.zip: a zip file (an archive of slices, or PyTorch's .pt); expected a .safetensors file\n",
        ),
        (
            ["--freezed=99"],
            "--freezed 99: this discriminator has 10 layers, and one must learn: use --freezed from 0 to 9",
        ),
    ],
)
def test_what_is_refused_at_the_beginning(place, tmp_path, options, words):
    if "split" in options[0]:
        made = {"split": {"part": "train", "train": ["drawn1-0"], "test": ["drawn0-3", "x"]}}
        write_with_history(place / "split.zip", made)
    given = [option.format(place=place) for option in options]
    told = refused(*begin(place, tmp_path / "new"), *given)
    assert words.format(place=place) in told and not (tmp_path / "new").exists()


def test_options_of_transfer_without_it(place, tmp_path):
    alone = [word for word in begin(place, tmp_path / "new") if not word.startswith("--transfer")]
    assert "--force is for --transfer, but there is none" in refused(*alone, "--force")
    assert "--no-patients speaks of the file of --transfer" in refused(*alone, "--no-patients=1")


def write_with_history(path, made):
    """An archive of one patient, whose history says what others are for."""
    import numpy as np

    from helpers.drawn import draw_slice
    from slices.archive.writer import ArchiveWriter
    from slices.schema import BRATS

    with ArchiveWriter(path, BRATS, 16, made) as archive:
        for _ in range(4):
            archive.add(draw_slice(np.random.RandomState(0), 16), patient="drawn1-0")


def test_force_begins_all_the_same(place, tmp_path):
    output = invoke(*begin(place, tmp_path / "new", "--cmax=2", "--force", "-n"))
    assert "Reasons:" in output and not (tmp_path / "new").exists()
    config = json.loads(output[: output.index("\n}") + 2])
    assert 0 < config["transfer"]["share"] < 0.5 and '"name": "network-snapshot-000000.safetensors"' in output


def test_other_channels_classes_and_resolutions_are_explained(place, tmp_path):
    write_archive(tmp_path / "one.zip", schema=ONE_CLASS, seed=1)
    write_archive(tmp_path / "large.zip", resolution=32, seed=1)
    for data, options, reason in [
        (tmp_path / "one.zip", [], "channels, 4 contrasts and 4 label maps → 3 contrasts and 2 label"),
        (tmp_path / "large.zip", [], "resolution, 16 → 32: larger blocks begin anew"),
        (place / "b.zip", ["--cond=1"], "classes, none → 2"),
    ]:
        output = invoke(*begin(place, tmp_path / "new"), f"--data={data}", *options, "-n")
        assert f"\n  {reason}" in output and not (tmp_path / "new").exists()


def test_a_published_checkpoint_knows_unknown_patients(place, tmp_path):
    """Its snapshots name the patients that are known, and say that there may be more: pictures only."""
    published = ["--cbase=128", "--cmax=16", "--z-dim=16", "--kimg=0.004"]
    command = [f"--data={place / 'b.zip'}", f"--transfer={PKL}", *TINY_OPTIONS, *published]
    output = invoke(f"--run-dir={tmp_path / 'P'}", *command)
    assert f"warning: {PKL} does not say which patients it learned from" in output
    assert "channels, 3 contrasts → 4 contrasts and 4 label maps" in output and "98.3 %" in output
    info = load_generator(tmp_path / "P").info
    assert info.patients == PATIENTS[1] and info.more_patients and info.all_patients is None
    assert info.training.transfer.kimg is None
    told = refused(f"--network={tmp_path / 'P'}", "--seeds=0", f"--dest={tmp_path / 'fake.zip'}", command=generate.main)
    assert "began with weights (train.py --transfer) that do not say which patients they were trained on" in told
    # It is not forgotten on the way to a third network, which knows those that are known.
    onward = [f"--run-dir={tmp_path / 'Q'}", f"--data={place / 'a.zip'}", f"--transfer={tmp_path / 'P'}", *TINY_OPTIONS]
    assert "learned from drawn1-0" in refused(*onward, *published, f"--exclude={place / 'b.zip'}")
    assert "does not say which other patients it learned from" in invoke(*onward, *published, "-n")
    # Unless the user knows better. The run can also be told so later.
    assert "from none, as --no-patients says" in invoke(f"--resume={tmp_path / 'P'}", "--no-patients=1", "--kimg=0.008")
    assert load_generator(tmp_path / "P").info.all_patients == PATIENTS[1]


@pytest.mark.slow
def test_a_unet_of_fakes_is_not_tested_on_patients_of_the_source(tmp_path):
    """A learns from some patients, B begins with its weights, a U-Net learns from fakes of B."""
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        write_archive(tmp_path / f"{name}.zip", seed=seed, resolution=32)
    invoke(f"--run-dir={tmp_path / 'A'}", f"--data={tmp_path / 'a.zip'}", *TINY_OPTIONS)
    invoke(*begin(tmp_path, tmp_path / "B"))
    fakes, model = f"{tmp_path / 'fake.zip'}", f"--model={tmp_path / 'unet'}"
    invoke(f"--network={tmp_path / 'B'}", "--seeds=0-3", f"--dest={fakes}", command=generate.main)
    unet = ["train", f"--data={fakes}", f"--outdir={tmp_path / 'unet'}", "--steps=1", "--batch=2", "--width=2"]
    invoke(*unet, "--workers=0", command=segmentation.__main__.main)
    for name in ("a", "b"):
        evaluate = ["evaluate", model, f"--data={tmp_path / f'{name}.zip'}", f"--outdir={tmp_path / 'out'}"]
        told = refused(*evaluate, command=segmentation.__main__.main)
        assert f"generated slices of a GAN that learned from drawn{'ab'.index(name)}-0" in told
    evaluate = ["evaluate", model, f"--data={tmp_path / 'c.zip'}", f"--outdir={tmp_path / 'out'}"]
    invoke(*evaluate, command=segmentation.__main__.main)


@pytest.mark.slow
def test_ranks_transfer_and_freeze_alike(place, tmp_path):
    """Two ranks read the source each, and come to the weights of one, up to rounding."""
    options = ["--cfg=stylegan2", "--aug=ada", "--freezed=3", "--kimg=0.016", "--batch-gpu=2", "--batch=4"]
    go(f"--run-dir={tmp_path / 'A'}", f"--data={place / 'a.zip'}", double=True)
    for name, gpus in (("one", 1), ("two", 2)):
        command = begin(place, tmp_path / name, *options, f"--transfer={tmp_path / 'A'}", f"--gpus={gpus}")
        go(*command, double=True)
    assert relative_difference(state_of(tmp_path / "two"), state_of(tmp_path / "one")) < 1e-11

"""The reproduction: what its stages are told, its report, and the whole chain."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

import reproduce
from commands import ROOT
from dnnlib.files import write_json
from dnnlib.stages import Stages
from drawn import write_archive
from segmentation.config import TrainUNetConfig, UNetConfig
from segmentation.data import ArchiveFacts
from segmentation.draws import Drawn
from segmentation.scores import Evaluation, ExaminationDice, ModelFacts, Summary, TargetDice, targets_of
from segmentation.unet import UNetInfo
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.schema import BRATS


def test_each_program_depends_on_all_packages_that_it_imports():
    def imported(path):
        names = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        return {name for name in names if (ROOT / name).is_dir()}

    for program, packages in reproduce.PROGRAMS.sources.items():
        files = [path for name in (program, *packages) for path in (ROOT / name, *(ROOT / name).rglob("*.py"))]
        found = set().union(*(imported(path) for path in files if path.is_file()))
        assert found == {*packages, *({program} if (ROOT / program).is_dir() else ())}, program


def test_a_second_call_is_refused(tmp_path):
    with Stages(tmp_path, reproduce.PROGRAMS).held():
        call = CliRunner().invoke(reproduce.main, ["--preset=demo", f"--outdir={tmp_path}"])
    assert call.exit_code == 2 and "is at work there; wait for it (process " in call.output


def test_a_class_that_real_slices_lack_has_no_ratio():
    areas = reproduce.ClassAreas({"NCR": 0.0, "ED": 0.02}, {"NCR": 0.01, "ED": 0.01})
    assert areas.rows() == [["NCR", "0.000%", "1.000%", "-"], ["ED", "2.000%", "1.000%", "0.50"]]


def test_mean_areas(tmp_path):
    archive = ArchiveReader(write_archive(tmp_path / "a.zip", count=4))
    classes = [archive.schema.split(archive.read(i))[1] for i in range(4)]
    areas = reproduce.mean_areas(archive.path)
    for index, name in enumerate(archive.schema.class_names, start=1):
        assert areas[name] == pytest.approx(sum((c == index).mean() for c in classes) / 4)
        assert areas[name] > 0


class RecordedStages:
    """Takes note of what would be run."""

    def __init__(self, outdir):
        self.outdir, self.commands, self.inputs, self.made = outdir, {}, {}, {}

    def run(self, stage):
        self.commands[stage.name], self.inputs[stage.name] = stage.command, [str(i) for i in stage.inputs]
        self.made[stage.name] = [self.outdir / output.replace("*", "0") for output in stage.outputs]
        return self.made[stage.name]


@pytest.mark.parametrize("name", list(reproduce.PRESETS))
def test_every_training_excludes_the_test_patients_and_every_input_is_known(tmp_path, monkeypatch, name):
    stages = RecordedStages(tmp_path)
    for function, value in (("count_slices", 10), ("report", None)):
        monkeypatch.setattr(reproduce, function, lambda *_, value=value: value)
    reproduce.reproduce(reproduce.PRESETS[name], "/brats" if name == "paper" else None, stages)
    trainings = {stage for stage, words in stages.commands.items() if words[0] == "train.py" or "train" in words[:3]}
    assert trainings == {"train", "unet-real", "unet-fake", "unet-fake-real"}
    test = stages.made["convert"][1]
    for stage, words in stages.commands.items():
        assert (f"--exclude={test}" in words) == (stage in trainings)
        read = [w.split("=", 1)[1] for w in words if w.startswith(("--data=", "--exclude=", "--model=", "--network="))]
        assert set(read) <= set(stages.inputs[stage]), "what a stage reads decides whether it is done"


@pytest.mark.parametrize("name", list(reproduce.PRESETS))
@pytest.mark.parametrize("missing", [None, True, False])
def test_every_arm_learns_from_the_same_shares(tmp_path, monkeypatch, capsys, name, missing):
    """missing: of the fakes, those with lesion (True) or without (False), so that no arm can have a share of them."""
    stages = RecordedStages(tmp_path)
    monkeypatch.setattr(reproduce, "report", lambda *_: None)
    monkeypatch.setattr(reproduce, "count_slices", lambda path, lesion=None: 0 if lesion is missing is not None else 9)
    reproduce.reproduce(reproduce.PRESETS[name], "/brats" if name == "paper" else None, stages)
    assert "--lesion-free=0.2" in stages.commands["convert"], "so that the GAN learns it too"
    shares = {
        tuple(word for word in words if word.startswith(("--empty", "--lesion-free")))
        for stage, words in stages.commands.items()
        if stage.startswith("unet") and "train" in words
    }
    assert shares == {("--empty=0.05", "--lesion-free=0.2") if missing is None else ("--empty=0.05",)}
    assert ("U-Nets draw slices as they come" in capsys.readouterr().out) == (missing is not None)


def test_count_slices(tmp_path):
    path = write_archive(tmp_path / "a.zip", count=4)
    with ArchiveWriter(tmp_path / "b.zip", BRATS, 16, {}) as writer:
        blank = BRATS.join(np.zeros((4, 16, 16), np.uint8), np.zeros((16, 16), np.uint8))
        for i, stored in enumerate([ArchiveReader(path).read(0), blank, blank]):
            writer.add(stored, patient=f"p{i}")
    counts = [[reproduce.count_slices(p, lesion) for lesion in (None, True, False)] for p in (path, writer.path)]
    assert counts == [[4, 4, 0], [3, 1, 2]]


def write_results(path, dice, masked, removed, seed):
    """The evaluation of a U-Net on an archive with two of three slices of each of two examinations of one patient."""
    pixels = ArchiveFacts("real.zip", "1" * 64, 4, 1, 1, (3.125, 3.125), 0)
    training = TrainUNetConfig(steps=10, batch=10, seed=seed, lesion_free=0.2)
    network = UNetConfig(4, 4, training.width)
    info = UNetInfo(BRATS, 64, network, training, (pixels,), ("a",), (), Drawn(75, 20, 5))
    target = TargetDice(dice, 0, 5, masked, removed)
    names = {t.name: target for t in targets_of(BRATS) if t.kind == "region"}, {n: target for n in BRATS.class_names}
    examinations = tuple(ExaminationDice("p", volume, 2, 3, *names) for volume in ("p-000", "p-001"))
    summary = Summary(dice, None, 2, masked, None, 2 * removed)
    evaluation = Evaluation(
        *("segmentation-dice", 3, "", ("a note",), replace(pixels, file="test.zip", examinations=2), ()),
        *({name: summary for name in of_kind} for of_kind in names),
        examinations,
        ModelFacts("unet.safetensors", "2" * 64, info),
    )
    write_json(path, evaluation)
    return path


def test_the_report_says_what_its_numbers_are(tmp_path, capsys):
    (tmp_path / "gan").mkdir()
    write_json(tmp_path / "gan" / "training_options.json", {"seed": 77})
    real, fake = write_archive(tmp_path / "real.zip", count=4), write_archive(tmp_path / "fake.zip", count=4)
    results = {
        "100 % R": write_results(tmp_path / "r.json", 0.5, 0.8, 1234, seed=5),
        "100 % F": write_results(tmp_path / "f.json", 0.4, 0.4, 0, seed=6),
    }
    reproduce.report(tmp_path, results, real, fake, tmp_path / "gan" / "network-snapshot-000022.safetensors")
    printed, markdown = capsys.readouterr().out, (tmp_path / "results.md").read_text()
    content = json.loads((tmp_path / "results.json").read_text())
    for words in (
        "2 examinations of 1 patient, 4 slices; a patient counts once",
        "Dice of 4 of 6 slices: the archive lacks slices of 2 of 2 examinations",
        "examinations, of 2, without any in the truth: WT (region) 2, TC (region) 2,",
        "seed of each U-Net: 100 % R 5, 100 % F 6",
        "one GAN, with seed 77, of 22 kimg",
        "training slices without lesion: 0.0% of the real ones, 0.0% of the fakes",
        "WT: the Dice of 100 % F is 80% of that of 100 % R; masked, 50% of it",
        "masked: with background wherever every contrast is 0",
    ):
        assert words in printed and f"- {words}" in markdown.replace("mean ± SD over patients: ", "")
        assert sum(words in note for note in content["notes"]) == 1, words
    # of three classes together
    for row in (f"100 % R | {'0.500 | ' * 6}7,404", f"100 % F, masked | {'0.400 | ' * 6}removed"):
        assert f"| {row} |" in markdown
    assert content["gan"] == {"kimg": 22, "seed": 77} and content["slices_without_lesion"] == {"real": 0, "fake": 0}
    assert (tmp_path / "dice.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "options, message",
    [
        (["--preset=paper"], "--preset=paper needs --source"),
        (["--preset=demo", "--source=x"], "--preset=demo makes its own patients"),
        (["--preset=paper", "--source=/nowhere"], "/nowhere: no such folder"),
        (["--preset=paper", "--source=.", "--patients=5"], "--patients is the number of phantoms"),
    ],
)
def test_mistakes(tmp_path, options, message):
    result = CliRunner().invoke(reproduce.main, [*options, f"--outdir={tmp_path / 'out'}"])
    assert result.exit_code == 2 and message in result.output and not (tmp_path / "out").exists()


def test_with_option_replaces():
    assert reproduce.with_option(("--kimg=50", "--batch=4"), "kimg", 0.5) == ("--batch=4", "--kimg=0.5")
    assert reproduce.with_option(("--kimg=50",), "kimg", None) == ("--kimg=50",)
    assert reproduce.with_option((), "steps", 1234567) == ("--steps=1234567",)


@pytest.mark.slow
def test_the_whole_chain(tmp_path):
    """Small in everything but the number of stages: from phantom volumes to the table, then nothing to do."""
    command = [sys.executable, "reproduce.py", "--preset=demo", f"--outdir={tmp_path}"]
    command += ["--kimg=0.1", "--steps=8", "--patients=8"]

    def run():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = run()
    assert "Dice on patients whom no network has seen" in first and first.count("took") > 9
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["dice"]) == {"100 % R", "100 % F", "100 % F + 100 % R"}
    assert {"WT", "TC", "ET"} == set(results["dice"]["100 % R"]["regions"])
    real, fake = ArchiveReader(tmp_path / "real" / "train.zip"), ArchiveReader(tmp_path / "fake" / "fake.zip")
    assert len(real) == len(fake) and real.schema == fake.schema
    both = json.loads((tmp_path / "unet-fake-real" / "training.json").read_text())
    assert [a["slices"] for a in both["unet"]["archives"]] == [len(fake), len(real)]
    assert both["unet"]["patients"] == sorted([*fake.info.patients, *real.info.patients])
    assert both["unet"]["seen"] == list(fake.info.seen) == sorted(real.info.patients)
    assert all(arm["overlap"] == [] for arm in results["dice"].values())
    assert run().count("done before") == 11

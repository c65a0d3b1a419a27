"""The reproduction: options of its stages, its report, and the whole chain."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import reproduce
import reproduce_stages
from dnnlib.files import make_folder, write_json
from dnnlib.jobs import held
from helpers.commands import ROOT
from helpers.drawn import write_archive
from helpers.evaluations import evaluation, examination
from reproduce_stages import Made, Preset
from slices.archive.reader import ArchiveReader
from slices.class_areas import ClassAreas


def test_each_program_depends_on_all_packages_that_it_imports():
    def imported(path):
        names = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        return {name for name in names if (ROOT / name).is_dir()}

    for program, packages in reproduce.PROGRAMS.sources.items():
        files = [path for name in (program, *packages) for path in (ROOT / name, *(ROOT / name).rglob("*.py"))]
        found = set().union(*(imported(path) for path in files if path.is_file()))
        assert found == {*packages, *({program} if (ROOT / program).is_dir() else ())}, program


def test_a_second_call_is_refused(tmp_path):
    with held(tmp_path):
        call = CliRunner().invoke(reproduce.main, ["--preset=demo", f"--outdir={tmp_path}"])
    assert call.exit_code == 2 and "is at work there; wait for it (process " in call.output


class RecordedJobs:
    """Jobs that record commands instead of running them."""

    def __init__(self, outdir):
        self.outdir, self.commands, self.inputs, self.made = outdir, {}, {}, {}

    def __call__(self, jobs):
        for job in jobs:
            self.made[job.name] = [self.outdir / output.replace("*", "0") for output in job.outputs]
            words = [self.put_in(word) for word in job.command]
            read = [self.made[name][index] for name, index in job.needs]
            self.commands[job.name], self.inputs[job.name] = words, [str(i) for i in (*job.inputs, *read)]
        return self.made

    def put_in(self, word):
        return re.sub("\0(.*)\0(.*)\0", lambda match: str(self.made[match[1]][int(match[2])]), word)


@pytest.fixture(params=list(reproduce_stages.PRESETS))
def recorded(request, tmp_path, monkeypatch):
    """Return a function that records all stages of a preset, as if `missing` of the 9 fakes had no lesion."""
    monkeypatch.setattr("slices.archive.reader.ArchiveReader", lambda path: range(9))
    monkeypatch.setattr(reproduce, "report", lambda *_: None)

    def run(missing):
        areas = ClassAreas(9, missing, 9, {"ET": 0}, {"ET": 9 - missing})
        monkeypatch.setattr(reproduce, "measure", lambda path: areas)
        stages = RecordedJobs(tmp_path)
        source = "/brats" if request.param == "paper" else None
        reproduce.reproduce(stages, tmp_path, reproduce_stages.PRESETS[request.param], source)
        return stages

    return run


def test_every_training_excludes_the_test_patients_and_every_input_is_known(recorded):
    stages = recorded(4)
    trainings = {stage for stage, words in stages.commands.items() if words[0] == "train.py" or "train" in words[:3]}
    assert trainings == {"train", "unet-real", "unet-fake", "unet-fake-real"}
    test = stages.made["convert"][1]
    for stage, words in stages.commands.items():
        assert (f"--exclude={test}" in words) == (stage in trainings)
        read = [w.split("=", 1)[1] for w in words if w.startswith(("--data=", "--exclude=", "--model=", "--network="))]
        assert set(read) <= set(stages.inputs[stage]), "what a stage reads decides whether it is done"
    assert "--seeds=0-8" in stages.commands["generate"], "as many as there are real slices"


@pytest.mark.parametrize("missing", [4, 0, 9])
def test_every_arm_learns_from_the_same_shares(recorded, capsys, missing):
    """If all fakes have a lesion, or none has, no arm gets --lesion-free."""
    stages, all_kinds = recorded(missing), missing == 4
    assert "--lesion-free=0.2" in stages.commands["convert"], "so that the GAN learns it too"
    shares = {
        tuple(word for word in words if word.startswith(("--empty", "--lesion-free")))
        for stage, words in stages.commands.items()
        if stage.startswith("unet") and "train" in words
    }
    assert shares == {("--empty=0.05", "--lesion-free=0.2") if all_kinds else ("--empty=0.05",)}
    words = "U-Nets are trained without --lesion-free=0.2"
    assert (words in capsys.readouterr().out) == (not all_kinds)


def test_what_is_asked_for_takes_the_place_of_the_presets_values():
    preset = reproduce.configure(reproduce.Options("demo", "out", kimg=0.5, steps=8, patients=9))
    usual = reproduce_stages.PRESETS["demo"]
    assert preset == Preset(
        convert=usual.convert,
        train=usual.train | {"kimg": 0.5},
        unet=usual.unet | {"steps": 8},
        phantom=usual.phantom | {"patients": 9},
    )
    assert list(preset.train) == list(usual.train), "in the same order, so that a stage knows its options again"


def test_the_report_names_the_gan(tmp_path, capsys):
    for name, values in {"gan/training_options": {"config": {"seed": 77}}, "r": evaluation(examination(0.5))}.items():
        make_folder((tmp_path / name).parent)
        write_json(tmp_path / f"{name}.json", values)
    archive = write_archive(tmp_path / "real.zip", count=4)
    made = Made(archive, archive, tmp_path / "gan" / "network-snapshot-000022.safetensors", archive, tmp_path / "x.png")
    results = {arm: tmp_path / "r.json" for arm in reproduce_stages.ARMS}
    reproduce.report(tmp_path, made, results, reproduce.measure(archive), reproduce.measure(archive))
    printed = capsys.readouterr().out
    assert "one GAN, with seed 77, of 22 kimg" in printed and "100 % F is 100% of that of 100 % R" in printed
    assert all((tmp_path / name).exists() for name in ("results.json", "results.md", "dice.png"))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--preset=paper"], "--preset=paper needs --source"),
        (["--preset=demo", "--source=x"], "--preset=demo makes its own patients"),
        (["--preset=paper", "--source=/nowhere"], "/nowhere: no such folder"),
        (["--preset=paper", "--source=.", "--patients=5"], "--patients is the number of phantoms"),
        (["--preset=demo", "--patients=3"], "--patients 3: expected a whole number from 4 up"),
    ],
)
def test_mistakes(tmp_path, options, message):
    result = CliRunner().invoke(reproduce.main, [*options, f"--outdir={tmp_path / 'out'}"])
    assert result.exit_code == 2 and message in result.output and not (tmp_path / "out").exists()


def test_help_does_not_wait_for_slow_modules():
    code = "import sys, reproduce; sys.exit(bool({'numpy', 'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_an_interrupted_training_of_the_gan_continues(tmp_path):
    """SIGTERM, then SIGKILL to the whole chain while the GAN trains; its networks become those of one call."""
    out = tmp_path / "out"
    command = ["reproduce.py", "--preset=demo", f"--outdir={out}", "--kimg=0.3", "--steps=8", "--patients=8"]

    def start(words):
        return subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def until(process, pattern):
        """Read what the process prints up to a line with the pattern, and return that."""
        printed = []
        for line in process.stdout:
            printed.append(line)
            if re.search(pattern, line):
                return "".join(printed)
        pytest.fail(f"no {pattern} in:\n{''.join(printed)}")

    first = start(command)
    printed = until(first, "^tick 0 ")
    first.send_signal(signal.SIGTERM)
    until(first, "train ended early; the same command skips finished jobs and continues this one")
    assert first.wait(timeout=60) == 143
    second = start(command)
    assert "SIGTERM" not in until(second, "Continuing from training-state-")
    second.kill()
    second.stdout.read()  # until the stage has ended too: on Linux, it saves its state
    third = start(command)
    assert until(third, "^=== generate").count("done before") == 2
    third.terminate()
    third.communicate()
    (run,) = (out / "gan").iterdir()
    log = (run / "log.txt").read_text()
    assert log.count("tick 0 ") == 1 and log.count("Continuing from") in (1, 2)
    (told,) = re.findall(r"\$ python (train.py .*)", printed)
    alone = tmp_path / "alone"
    subprocess.run(
        [sys.executable, *shlex.split(told.replace(str(run), str(alone)))], cwd=ROOT, check=True, capture_output=True
    )
    (interrupted,), (whole,) = (folder.glob("network-snapshot-*") for folder in (run, alone))
    networks, expected = load_file(interrupted), load_file(whole)
    assert networks.keys() == expected.keys()
    assert all(torch.equal(networks[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_the_whole_chain(tmp_path):
    """All stages at a small size, from phantom volumes to the table. A second call has nothing to do."""
    command = [sys.executable, "reproduce.py", "--preset=demo", f"--outdir={tmp_path}"]
    command += ["--kimg=0.1", "--steps=8", "--patients=8"]

    def run():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = run()
    assert "Dice on patients that no network has seen" in first and first.count("took") > 9
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

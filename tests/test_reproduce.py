"""The pipeline: stages are skipped exactly when nothing changed, and the whole chain runs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import reproduce
from commands import ROOT
from dnnlib.errors import UserError
from dnnlib.files import write_json
from dnnlib.sources import sources_sha256
from drawn import write_archive
from segmentation.config import TrainUNetConfig, UNetConfig
from segmentation.data import ArchiveFacts, Drawn
from segmentation.scores import Evaluation, ExaminationDice, ModelFacts, Summary, TargetDice, targets_of
from segmentation.unet import UNetInfo
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.schema import BRATS

COPY = "import sys; from pathlib import Path; Path(sys.argv[2]).write_text(Path(sys.argv[1]).read_text() + sys.argv[3])"


@pytest.fixture
def stages(tmp_path):
    (tmp_path / "in.txt").write_text("input ")
    return reproduce.Stages(tmp_path)


def copy(stages, suffix="done"):
    """A stage that copies in.txt to out.txt with something behind it; returns whether it ran."""
    before = (stages.outdir / "out.txt").stat().st_mtime_ns if (stages.outdir / "out.txt").exists() else None
    command = ["-c", COPY, "{out}/in.txt", "{out}/out.txt", suffix]
    (result,) = stages.run("copy", "copy", command, [stages.outdir / "in.txt"], ["out.txt"], replaces=False)
    assert result.read_text() == (stages.outdir / "in.txt").read_text() + suffix
    return result.stat().st_mtime_ns != before


def test_a_stage_runs_again_only_if_options_inputs_or_results_changed(stages):
    assert copy(stages)
    assert not copy(stages)
    assert copy(stages, suffix="other options")
    (stages.outdir / "in.txt").write_text("another input ")
    assert copy(stages, suffix="other options")
    (stages.outdir / "out.txt").write_text("damaged")
    assert copy(stages, suffix="other options")
    (stages.outdir / "out.txt").unlink()
    assert copy(stages, suffix="other options")
    assert not copy(stages, suffix="other options")


def test_a_stage_that_failed_is_not_done(stages, capfd):
    command = ["-c", "import sys; open(sys.argv[1], 'w').write('half'); sys.exit(int(sys.argv[2]))", "{out}/out.txt"]
    for code, expected in ((2, 2), (1, 1), (130, 130)):
        with pytest.raises(SystemExit) as stopped:
            stages.run("half", "fail", [*command, str(code)], [], ["out.txt"])
        assert stopped.value.code == expected
        assert not json.loads((stages.records / "half.json").read_text())["complete"]
    assert "half ended early" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        stages.run("half", "be killed", ["-c", "import os; os.kill(os.getpid(), 9)"], [], ["out.txt"])
    assert "half ended early (killed, most likely for want of memory); the same" in capfd.readouterr().err
    stages.run("half", "succeed", [*command, "0"], [], ["out.txt"])
    assert json.loads((stages.records / "half.json").read_text())["complete"]


def test_ctrl_c_lets_the_stage_end_in_its_own_time(tmp_path):
    """As in a terminal, where Ctrl-C reaches the pipeline and the stage at once: training then saves a snapshot."""
    stage = (
        "import signal, sys, time; signal.signal(signal.SIGINT, lambda *a: None); print('ready', flush=True);"
        "time.sleep(2); time.sleep(1); open(sys.argv[1], 'w').write('saved'); sys.exit(130)"
    )
    script = (
        f"import reproduce; from pathlib import Path; stages = reproduce.Stages(Path({str(tmp_path)!r}));"
        f"stages.run('slow', '', ['-c', {stage!r}, '{{out}}/out.txt'], [], ['out.txt'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in process.stdout:
        if line.startswith("ready"):
            os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert (tmp_path / "out.txt").read_text() == "saved"
    assert not json.loads((tmp_path / "stages" / "slow.json").read_text())["complete"]


# A stage that says who it is, takes note of SIGTERM if asked to, and would go on for long.
LONG = """
import os, signal, sys, time
def end(*_):
    print("ended", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end if sys.argv[1] == "heeds" else signal.SIG_IGN)
print("ready", os.getpid(), flush=True)
time.sleep(60)
"""


def begin(outdir, how="heeds", prefix=""):
    """A pipeline of one long stage, in a process of its own, and the stage's process id."""
    script = (
        f"{prefix}\nimport reproduce; from pathlib import Path; stages = reproduce.Stages(Path({str(outdir)!r}))\n"
        f"with stages.held(): stages.run('long', '', ['-c', {LONG!r}, {how!r}], [], [])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("ready"):
            return process, int(line.split()[1])
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_pipeline_ends_its_stage(tmp_path, sent):
    """As batch systems and container runtimes send it: to the parent alone."""
    process, stage = begin(tmp_path)
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)  # the stage holds the pipe, too
    assert process.returncode == 128 + sent and "ended" in out
    assert "long ended early; the same command skips what is done" in err and "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(stage, 0)


@pytest.mark.parametrize("grace, signals", [(0.2, 1), (100, 2)], ids=["in time", "at a second signal"])
def test_a_stage_that_does_not_heed_a_signal_is_killed(tmp_path, grace, signals):
    process, stage = begin(tmp_path, "ignores", f"import dnnlib.processes; dnnlib.processes.GRACE = {grace}")
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    process.communicate(timeout=30)
    assert process.returncode == 143


@pytest.mark.skipif(sys.platform != "linux", reason="no other system ends a process with its parent")
def test_a_stage_ends_with_a_pipeline_that_is_killed(tmp_path):
    process, stage = begin(tmp_path)
    process.kill()
    out, _ = process.communicate(timeout=30)
    assert "ended" in out


def test_a_second_call_waits_for_its_turn(tmp_path):
    process, stage = begin(tmp_path)
    for _ in range(2):
        call = CliRunner().invoke(reproduce.main, ["--preset=demo", f"--outdir={tmp_path}"])
        assert call.exit_code == 2 and f"is at work there; wait for it (process {process.pid} on " in call.output
    process.terminate()
    process.communicate(timeout=30)
    with reproduce.Stages(tmp_path).held():
        pass


def test_force_is_passed_only_for_what_the_stage_itself_left(stages):
    command = ["-c", "import sys; open(sys.argv[1], 'w').write(' '.join(sys.argv[2:]))", "{out}/out.txt"]
    (out,) = stages.run("write", "", [*command, "one"], [], ["out.txt"])
    assert out.read_text() == "one"
    stages.run("write", "", [*command, "two"], [], ["out.txt"])
    assert out.read_text() == "two --force"


def test_what_a_stage_did_not_make_is_not_replaced(stages):
    (stages.outdir / "out.txt").write_text("mine")
    for _ in range(2):
        with pytest.raises(UserError, match="out.txt is there already, but not from this stage"):
            stages.run("write", "", ["-c", "import sys; open(sys.argv[1], 'w')", "{out}/out.txt"], [], ["out.txt"])
    assert (stages.outdir / "out.txt").read_text() == "mine"


def test_a_moved_output_folder_is_still_done(stages, tmp_path, monkeypatch):
    command = ["-c", "import sys; open(sys.argv[1], 'w').write('x')", "{out}/out.txt"]
    stages.run("write", "", command, [], ["out.txt"])
    moved = tmp_path.rename(tmp_path.parent / "moved [1]")
    before = (moved / "out.txt").stat().st_mtime_ns
    reproduce.Stages(moved).run("write", "", command, [], ["out.txt"])
    monkeypatch.chdir(moved.parent)
    reproduce.Stages(Path("moved [1]")).run("write", "", command, [], ["out.txt"])
    assert (moved / "out.txt").stat().st_mtime_ns == before


def test_a_changed_program_makes_its_results_again(stages, monkeypatch):
    assert copy(stages) and not copy(stages)
    monkeypatch.setattr(reproduce, "sources_sha256", lambda *names: "changed")
    assert copy(stages) and not copy(stages)


def test_a_stage_depends_on_the_sources_of_its_command(tmp_path):
    for folder in ("dnnlib", "slices", "torch_utils/ops/csrc", "training"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "train.py").write_text("1")
    for name in ("train.py", "slices/new.py", "torch_utils/ops/csrc/tail.cu"):
        before = sources_sha256(name.partition("/")[0], root=tmp_path)
        (tmp_path / name).write_text("2")
        sources_sha256.cache_clear()
        assert sources_sha256(name.partition("/")[0], root=tmp_path) != before, name
    for packages in reproduce.SOURCES.values():
        assert all((ROOT / package / "__init__.py").exists() for package in packages)
    kinds = [reproduce.sources_of(command) for command in (["train.py"], ["generate.py"], ["-m", "segmentation"])]
    assert len(set(kinds)) == 3


def described(folder):
    return reproduce.fingerprint(reproduce.describe_input(folder))


def test_changes_behind_links_are_seen(tmp_path):
    """Links to folders and files, several to one, in each other, and to nowhere."""
    store = tmp_path / "store"
    (store / "deep").mkdir(parents=True)
    for name in ("a.nii", "b.nii", "deep/c.nii"):
        (store / name).write_text(name[-5])
    source = tmp_path / "source"
    source.mkdir()
    (source / "HGG").symlink_to("../store")
    (source / "again").symlink_to(store / "deep")
    (source / "one.nii").symlink_to("../store/b.nii")
    (store / "deep" / "loop").symlink_to("..")
    (source / "nowhere").symlink_to("none")
    for file in store.rglob("*.nii"):
        os.utime(file, (1, 1))
    states = [described(source)]

    def change(what):
        what()
        states.append(described(source))
        assert states[-1] not in states[:-1] and described(source) == states[-1]

    change(lambda: (store / "deep" / "d.nii").write_text("new"))
    change(lambda: (store / "deep" / "d.nii").unlink() or (store / "deep" / "table.csv").write_text("new"))

    def exchange():  # names, sizes and dates are those of before
        time.sleep(0.02)  # a tick of the kernel's clock
        (store / "a.nii").rename(store / "x")
        (store / "b.nii").rename(store / "a.nii")
        (store / "x").rename(store / "b.nii")

    change(exchange)
    change(lambda: (source / "again").unlink())
    change(lambda: (source / "again").symlink_to(tmp_path))
    (store / ".hidden").write_text("no data")
    assert described(source) == states[-1]


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

    def run(self, name, purpose, command, inputs, outputs, replaces=True):
        self.commands[name], self.inputs[name] = command, [str(i) for i in inputs]
        self.made[name] = [self.outdir / output.replace("*", "0") for output in outputs]
        return self.made[name]


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

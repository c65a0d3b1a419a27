"""The reproduction: its jobs, options, and the whole chain."""

import json
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
from dnnlib.errors import UserError
from dnnlib.jobs import held
from helpers.commands import ROOT
from reproduce_jobs import PRESETS, Few, all_jobs
from segmentation.results import read_rows
from slices.archive.reader import ArchiveReader


def options(**values) -> reproduce.Options:
    usual = {"preset": "demo", "outdir": "out"}
    return reproduce.Options(**{**usual, **values})


def jobs_of(on_gpus=False, **values) -> dict:
    return {job.name: job for job in all_jobs(reproduce.configure(options(**values)), on_gpus)}


@pytest.fixture(params=list(PRESETS))
def preset(request, tmp_path):
    return {"preset": request.param, "source": str(tmp_path) if request.param == "paper" else None}


def needed(jobs, name) -> set[str]:
    """Jobs whose results a job reads, also through others."""
    direct = {other for other, _ in jobs[name].needs}
    return direct.union(*(needed(jobs, other) for other in direct))


def test_every_training_excludes_the_test_patients_and_every_input_is_known(preset):
    jobs = jobs_of(**preset)
    trainings = {name for name, job in jobs.items() if job.command[0] == "train.py" or "train" in job.command[:3]}
    assert {"gan-1", "table1-unet-R-1", "table1-unet-F-1", "table1-unet-F-R-2"} <= trainings
    test = ("convert", 1)
    for name, job in jobs.items():
        assert any(word.startswith("--exclude=\0convert\0001\0") for word in job.command) == (name in trainings), name
        if name.startswith(("table1-test", "table2-test")):
            assert test in job.needs
        told = re.findall("\0([^\0]+)\0([0-9])\0", " ".join(job.command))
        assert {(a, int(b)) for a, b in told} <= set(job.needs), "what a job reads decides whether it is done"


def test_every_arm_has_the_same_options(preset):
    common = ("--steps", "--batch", "--width", "--lr", "--empty", "--lesion-free", "--augment", "--average")
    trainings = [
        job for job in jobs_of(**preset).values() if "segmentation" in job.command[:2] and job.kind[:5] == "U-Net"
    ]
    whole = [job for job in trainings if not job.name.endswith(("-half", "-double"))]
    assert len({tuple(w for w in job.command if w.startswith(common)) for job in whole}) == 1 and len(whole) >= 6


def test_replicates_have_gans_of_their_own_or_share_one(tmp_path):
    paper = jobs_of(preset="paper", source=str(tmp_path))
    for r in range(1, 6):
        assert f"--seed={r - 1}" in paper[f"gan-{r}"].command
        assert {f"fake-{r}", f"gan-{r}"} <= needed(paper, f"table1-unet-F-{r}")
    demo = jobs_of()
    assert "gan-2" not in demo and "fake-1" in needed(demo, "table1-unet-F-2")
    own = jobs_of(replicates=3, gans=3)
    assert "fake-3" in needed(own, "table1-unet-F-R-3") and "fake-1" not in needed(own, "table1-unet-F-R-3")


def test_table_two_learns_from_the_few(tmp_path):
    few = jobs_of(few="patients:15")
    assert "--patients=15" in few["few"].command
    assert "few" in needed(few, "few-gan-1") and "few-gan-1" in needed(few, "table2-unet-3F-R-2")
    assert "--times=3" in few["few-fake-1"].command, "as many as its largest arm needs"
    everything = jobs_of(few="slices:100", gan_on="all")
    assert "few-gan-1" not in everything and "gan-1" in needed(everything, "table2-unet-F-1")
    for gan_on, words in [("few", "the GAN learned from these alone"), ("all", "from all real slices")]:
        wanted = reproduce.configure(options(few="slices:100", gan_on=gan_on))
        (_, _), (plan, _) = wanted.plans
        assert "100 slices" in plan.title and words in plan.title
    assert not any(name.startswith("table2") for name in jobs_of())


def test_a_gan_on_a_cpu_has_it_to_itself():
    assert jobs_of()["gan-1"].alone and not jobs_of(on_gpus=True)["gan-1"].alone


def test_what_is_asked_for_takes_the_place_of_the_presets_values():
    wanted = reproduce.configure(options(kimg=0.5, steps=8, patients=20, replicates=4, convergence=True))
    usual = PRESETS["demo"]
    assert wanted.preset.train == {**usual.train, "kimg": 0.5} and list(wanted.preset.train) == list(usual.train)
    assert wanted.preset.unet == {**usual.unet, "steps": 8} and wanted.preset.phantom["patients"] == 20
    assert (wanted.preset.replicates, wanted.preset.convergence, wanted.gans) == (4, True, 1)


@pytest.mark.parametrize(
    "text", ["", "slices", "slices:", "slices:0", "slices:-1", "slices:1e3", "people:5", "slices:²"]
)
def test_other_numbers_of_few_slices_are_refused(text):
    with pytest.raises(UserError, match="expected slices:N or patients:N"):
        Few.parse(text)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--preset=paper"], "--preset=paper needs --source"),
        (["--preset=demo", "--source=x"], "--preset=demo makes its own patients"),
        (["--preset=paper", "--source=/nowhere"], "/nowhere: no such folder"),
        (["--preset=paper", "--source=.", "--patients=20"], "--patients is the number of phantoms"),
        (["--preset=demo", "--gan-on=all"], "--gan-on all is about Table 2, which the demo makes with --few"),
        (["--preset=demo", "--patients=3"], "--patients 3: expected a whole number from 20 up"),
        (["--preset=demo", "--few=many"], "--few many: expected slices:N or patients:N"),
        (["--preset=demo", "--gans=2", "--replicates=3"], "expected 1 or the number of --replicates, 3"),
        (["--preset=demo", "--launcher=no-such-program -n1"], "there is no program no-such-program"),
    ],
)
def test_mistakes(tmp_path, options, message):
    result = CliRunner().invoke(reproduce.main, [*options, f"--outdir={tmp_path / 'out'}"])
    assert result.exit_code == 2 and message in result.output and not (tmp_path / "out").exists()


def test_a_second_call_is_refused(tmp_path):
    with held(tmp_path):
        call = CliRunner().invoke(reproduce.main, ["--preset=demo", f"--outdir={tmp_path}"])
    assert call.exit_code == 2 and "is at work there; wait for it (process " in call.output


def test_a_dry_run_shows_all_jobs_and_makes_nothing(tmp_path):
    call = CliRunner().invoke(reproduce.main, ["--preset=demo", "--dry-run", f"--outdir={tmp_path / 'out'}"])
    assert call.exit_code == 0, call.output
    assert all(job in call.output for job in jobs_of()) and "\0" not in call.output and not (tmp_path / "out").exists()


def test_help_does_not_wait_for_slow_modules():
    code = "import sys, reproduce; sys.exit(bool({'numpy', 'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_an_interrupted_training_of_the_gan_continues(tmp_path):
    """SIGTERM, then SIGKILL to the whole chain while the GAN trains; its networks become those of one call."""
    out = tmp_path / "out"
    command = [
        "reproduce.py",
        "--preset=demo",
        f"--outdir={out}",
        "--kimg=0.3",
        "--steps=8",
        "--patients=20",
        "--jobs=1",
    ]

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
    until(first, "gan-1 ended early; the same command skips finished jobs and continues this one")
    assert first.wait(timeout=60) == 143
    second = start(command)
    assert "SIGTERM" not in until(second, "Continuing from training-state-")
    second.kill()
    second.stdout.read()  # until the stage has ended too: on Linux, it saves its state
    third = start(command)
    assert until(third, "^=== fake-1").count("done before") >= 2
    third.terminate()
    third.communicate()
    (run,) = (out / "gan-1").iterdir()
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
    """All jobs at a small size, from phantom volumes to both tables. A second call has nothing to do."""
    command = [sys.executable, "reproduce.py", "--preset=demo", f"--outdir={tmp_path}", "--few=slices:60"]
    command += ["--kimg=0.1", "--steps=8", "--patients=20", "--replicates=1"]

    def run():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = run()
    assert "=== Table 1: U-Nets trained on real slices, fakes, or both" in first
    assert "=== Table 2: U-Nets trained on few real slices: 60 slices; the GAN learned from these alone" in first
    rows = read_rows(tmp_path / "results.csv")
    arms = {(row.experiment, row.arm) for row in rows}
    assert arms == {
        *(("table1", arm) for arm in ("R", "F", "F+R")),
        *(("table2", arm) for arm in ("R", "F", "F+R", "3F+R", "3A+R")),
    }
    assert {row.replicate for row in rows} == {1}
    real, few = ArchiveReader(tmp_path / "real" / "train.zip"), ArchiveReader(tmp_path / "real" / "few.zip")
    fake, more = (ArchiveReader(tmp_path / "fake" / f"{name}.zip") for name in ("fake-1", "few-fake-1"))
    assert len(real) == len(fake) and real.schema == fake.schema and len(more) == 3 * len(few) == 180
    both = json.loads((tmp_path / "table1" / "unets" / "F-R" / "1" / "training.json").read_text())
    assert both["unet"]["seen"] == list(fake.info.seen) == sorted(real.info.patients)
    assert set(more.info.seen) == set(few.info.patients)
    assert "one replicate: no intervals and no p-values" in (tmp_path / "report.html").read_text()
    csv = (tmp_path / "results.csv").read_bytes()
    jobs = len(all_jobs(reproduce.configure(options(few="slices:60", replicates=1)), False))
    assert f"{jobs} jobs done before with these options, inputs and sources" in run()
    assert (tmp_path / "results.csv").read_bytes() == csv

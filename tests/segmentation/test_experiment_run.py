"""Whole experiments, with U-Nets of two steps: their results, continued after kills, in any number of slots."""

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import pytest

from dnnlib.files import read_json, sha256
from dnnlib.jobs import held
from helpers.commands import ROOT
from helpers.warm import Warm
from rings import RING, write_fakes, write_volumes
from segmentation.evaluate import load_evaluation
from segmentation.experiment import RECIPES, WRITTEN
from segmentation.results import COLUMNS, read_rows
from segmentation.scores import targets_of
from segmentation.statistics import NO_DIFFERENCE
from segmentation.tables import ONE_GAN, ONE_REPLICATE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="kills are watched through /proc"),
]

VOLUMES = {"a-0": "a", "a-1": "a", "b-0": "b", "c-0": "c"}  # of the test; one patient was examined twice
ARMS = {"R": "R", "F": "F", "F+R": "F-R"}  # name -> folder
TINY = ("--steps=2", "--batch=2", "--width=2", "--workers=0")


class Experiments:
    """Calls of `experiment` on the same archives. Its jobs start at once, as forks of a warm server."""

    def __init__(self, folder: Path, warm: Warm) -> None:
        self.folder, self.warm = folder, warm
        write_volumes(folder / "real.zip", {"r0": "r0", "r1": "r1"})
        write_volumes(folder / "test.zip", VOLUMES)
        for r in (1, 2):  # other fakes of one GAN
            write_fakes(folder / f"fake-{r}.zip", 8, first=8 * r, of="5" * 64)

    def words(self, outdir: Path, *options: str, launched=True, **changed) -> list[str]:
        """The words of a call."""
        given = {"arms": "table1", "replicates": 2, "convergence": 0, "fake": self.folder / "fake-{r}.zip"} | changed
        archives = (f"--real={self.folder}/real.zip", f"--test={self.folder}/test.zip")
        values = [f"--{name}={value}" for name, value in given.items() if value is not None]
        launcher = [f"--launcher={shlex.join(self.warm.words)}"] * launched
        program = [sys.executable, str(ROOT / "segmentation"), "experiment"]
        return [*program, *archives, *values, *TINY, f"--outdir={outdir}", *launcher, *options]

    def start(self, outdir: Path, *options: str, **changed) -> subprocess.Popen:
        words = [*self.warm.words, *self.words(outdir, *options, **changed)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, outdir: Path, *options: str, **changed) -> str:
        """What a call prints that must end well."""
        process = self.start(outdir, *options, **changed)
        printed = process.communicate()[0]
        assert process.returncode == 0, printed
        return printed


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    with tempfile.TemporaryDirectory() as short, Warm(Path(short), ROOT) as warm:
        yield Experiments(tmp_path_factory.mktemp("experiments"), warm)


@pytest.fixture(scope="module")
def finished(experiments) -> Path:
    """Table 1 with two replicates, undisturbed, one job at a time."""
    outdir = experiments.folder / "finished"
    (experiments.folder / "finished.txt").write_text(experiments.run(outdir, "--jobs=1"))
    return outdir


def trained(outdir):
    """When each U-Net, and each other result of a job, was written."""
    paths = [path for kind in ("unets", "tests", "agreement") for path in (outdir / kind).rglob("*") if path.is_file()]
    return {str(path.relative_to(outdir)): path.stat().st_mtime_ns for path in paths if path.name != "log.txt"}


# --- results --------------------------------------------------------------------------------------------------------


def test_results_have_a_row_for_each_arm_replicate_examination_and_target(finished):
    rows = read_rows(finished / "results.csv")
    expected = product((1, 2), ARMS, VOLUMES, [(target.kind, target.name) for target in targets_of(RING)])
    assert [(row.replicate, row.arm, row.examination, (row.kind, row.target)) for row in rows] == list(expected)
    assert {row.experiment for row in rows} == {"table1"}
    assert all(row.patient == VOLUMES[row.examination] for row in rows)


def test_rows_are_those_of_the_tests(finished, experiments):
    archives = ("real", "test", "fake-1", "fake-2")
    hashes = {name: sha256(experiments.folder / f"{name}.zip") for name in archives}
    for row in read_rows(finished / "results.csv"):
        tested = load_evaluation(finished / "tests" / ARMS[row.arm] / str(row.replicate) / "results.json")
        (examination,) = [one for one in tested.examinations if one.volume == row.examination]
        (target,) = [one for one in targets_of(RING) if (one.kind, one.name) == (row.kind, row.target)]
        found = examination.result(target)
        assert (row.dice, row.masked_dice, row.hd95_mm) == (found.dice, found.masked_dice, found.hd95)
        assert (row.truth_voxels, row.predicted_voxels, row.outside_voxels) == (
            found.truth,
            found.predicted,
            found.removed,
        )
        assert row.truth_empty == (found.truth == 0) and row.prediction_empty == (found.predicted == 0)
        assert row.hd95_mm is not None, "the places of all slices are known"
        assert row.unet_sha256 == tested.model.sha256 and row.unet_seed == row.replicate - 1
        fakes = f"fake-{row.replicate}" if "F" in row.arm else None
        assert row.gan == ("5" * 64 if fakes else "") and row.fake_sha256 == (hashes[fakes] if fakes else "")
        assert row.real_sha256 == (hashes["real"] if "R" in row.arm else "") and row.test_sha256 == hashes["test"]


def test_networks_learned_from_what_their_arms_say(finished):
    for (arm, folder), r in product(ARMS.items(), (1, 2)):
        record = read_json(finished / "unets" / folder / str(r) / "training.json")["unet"]
        files = [name for name in ("real.zip" * ("R" in arm), f"fake-{r}.zip" * ("F" in arm)) if name]
        assert [one["file"] for one in record["archives"]] == files and record["learned"] == [8] * len(files)
        assert (record["arm"], record["training"]["seed"], record["training"]["steps"]) == (arm, r - 1, 2)
    shas = {row.unet_sha256 for row in read_rows(finished / "results.csv")}
    assert len(shas) == 6, "no two are the same"


def test_all_files_are_there_and_agree(finished):
    assert {path.name for path in finished.iterdir()} == {*WRITTEN, "unets", "tests", "agreement", "jobs"}
    (content,) = read_json(finished / "results.json")["experiments"]
    assert (content["name"], content["replicates"], content["gans"]) == ("table1", 2, 1)
    given = {"steps": 2, "batch": 2, "width": 2, "lr": RECIPES["small"]["lr"], "workers": 0}
    assert content["options"] == given | {"empty": 0.05, "average": 0.25}
    claims = [(one["claim"]["kind"], one["claim"]["first"], one["target"]) for one in content["comparisons"]]
    assert claims == [(kind, first, target) for kind, first in CLAIMS for target in ("whole", "core")]
    assert all(one["p"] is not None and one["interval"] for one in content["comparisons"])
    rows = read_rows(finished / "results.csv")
    for one in content["comparisons"]:
        for arm, mean in zip((one["claim"]["first"], one["claim"]["second"]), one["means"], strict=True):
            assert mean == pytest.approx(mean_dice(rows, arm, one["target"]))
    slices = [one["slices"] for one in content["agreement"]]
    assert slices == ["test patients", "fakes 1", "fakes 2"]
    page = (finished / "report.html").read_text()
    assert ",".join(COLUMNS) not in page and "results.csv" in page
    paths = [str(finished.parent), str(ROOT)]
    assert not [path for path in paths if path in json.dumps(content["archives"])], "paths may be private"


CLAIMS = [("non-inferior", "F"), ("superior", "F+R")]


def mean_dice(rows, arm, target):
    """By hand: over the examinations of a patient, then over patients, then over replicates."""
    means = []
    for r in (1, 2):
        chosen = [row for row in rows if (row.arm, row.replicate, row.kind, row.target) == (arm, r, "region", target)]
        of_patient = [[row.dice for row in chosen if row.patient == patient] for patient in "abc"]
        means.append(sum(sum(dice) / len(dice) for dice in of_patient) / 3)
    return sum(means) / 2


def test_two_archives_of_one_gan_are_told_in_every_output(finished):
    told = {name: (finished / name).read_text() for name in ("report.html", "report.md", "results.json")}
    told["terminal"] = (finished.parent / "finished.txt").read_text()
    for name, text in told.items():
        words = text.encode().decode("unicode_escape") if name == "results.json" else text.replace("&#39;", "'")
        assert ONE_GAN in words, name
        assert ONE_REPLICATE not in words, name


# --- jobs -----------------------------------------------------------------------------------------------------------


def test_the_launcher_started_every_job_once(finished, experiments):
    begun = [words[2:] for _, words in experiments.warm.begun() if f"--outdir={finished}/" in str(words)]
    jobs = [words for words in begun if words[0] in ("train", "evaluate")]
    assert len(jobs) == len(list((finished / "jobs").glob("*.json"))) == 6 + 6 + 2
    assert len({str(words) for words in jobs}) == len(jobs) and len(jobs) == len(begun)


def test_nothing_is_to_do_when_all_is_done(finished, experiments):
    before, content = trained(finished), (finished / "results.csv").read_bytes()
    assert "Nothing is to do" in experiments.run(finished, "--dry-run")
    assert "14 jobs done before" in experiments.run(finished, "--jobs=2")
    assert trained(finished) == before and (finished / "results.csv").read_bytes() == content


def test_without_a_launcher_two_jobs_at_a_time_give_the_same_networks(finished, experiments, tmp_path):
    """Also shows that the warm server changes nothing."""
    words = experiments.words(tmp_path / "out", "--jobs=2", launched=False, arms="F; F+R", replicates=1)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    keys = ("arm", "examination", "kind", "target", "dice", "hd95_mm", "unet_sha256", "fake_sha256")
    found = [[getattr(row, key) for key in keys] for row in read_rows(tmp_path / "out/results.csv")]
    expected = [row for row in read_rows(finished / "results.csv") if row.replicate == 1 and row.arm != "R"]
    assert found == [[getattr(row, key) for key in keys] for row in expected]
    for table in ("report.md", "results.json"):
        assert ONE_REPLICATE in (tmp_path / "out" / table).read_text()


# --- kills ----------------------------------------------------------------------------------------------------------


def is_at_work(pid):
    """Return whether a process exists and has not ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] not in "ZX"
    return False


def wait_until_all_ended(pids):
    late = time.monotonic() + 60
    while any(map(is_at_work, pids)):
        assert time.monotonic() < late, "orphans work on"
        time.sleep(0.02)


def results_of_finished_jobs(outdir):
    """Times of the files that finished jobs have made."""
    records = [read_json(path) for path in (outdir / "jobs").glob("*.json")]
    paths = [outdir / path for record in records if record["complete"] for path in record["results"]]
    return {path: path.stat().st_mtime_ns for path in paths}


KILLS = 14


def test_kills_at_random_moments(finished, experiments, tmp_path):
    """SIGKILL of the parent or of a job, two at a time; continued with the same command, even when all was done."""
    chance, outdir, done = random.Random(1), tmp_path / "out", 0
    kept: dict[Path, int] = {}
    status = None
    while done < KILLS or status != 0:
        process = experiments.start(outdir, "--jobs=2")
        if done < KILLS:
            jobs = 0 if status == 0 else chance.randrange(4)  # that begin before the kill
            delay = chance.uniform(0, 0.5 if jobs else 3)  # seconds
            done += kill_one(experiments.warm, process, outdir, chance, jobs, delay)
        printed = process.communicate()[0]
        status = process.returncode
        assert "Traceback" not in printed, printed
        wait_until_all_ended([pid for pid, words in experiments.warm.begun() if str(outdir) in str(words)])
        with held(outdir):  # nobody holds the folder any longer
            now = results_of_finished_jobs(outdir)
        assert now.items() >= kept.items(), "a finished job was done again"
        kept = now
    assert (outdir / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()
    assert {path.name for path in outdir.iterdir()} == {path.name for path in finished.iterdir()}, "no leftovers"


def kill_one(warm, process, outdir, chance, jobs, delay):
    """Kill the parent, or a job at work if there is any. Returns whether there was still something to kill.

    jobs: so many begin before that. delay: seconds after the last of them began.
    """
    before = len(warm.begun())
    while process.poll() is None and len(warm.begun()) <= before + jobs:  # the first one to begin is the parent
        time.sleep(0.01)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(delay)
        return False
    begun = [(pid, words) for pid, words in warm.begun() if str(outdir) in str(words)]
    at_work = [pid for pid, words in begun if words[2] != "experiment" and is_at_work(pid)]
    victim = chance.choice([process.pid, *([chance.choice(at_work)] if at_work else [])])
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    return True


# --- other plans ----------------------------------------------------------------------------------------------------


def test_equal_arms_show_no_difference(experiments, tmp_path):
    printed = experiments.run(tmp_path / "out", arms="R; R", fake=None)
    assert f"R (2) differs from R: whole {NO_DIFFERENCE}, core {NO_DIFFERENCE}" in printed
    rows = read_rows(tmp_path / "out/results.csv")
    seeds = {(row.arm, row.replicate): row.unet_seed for row in rows}
    assert seeds == {("R", 1): 0, ("R", 2): 1, ("R (2)", 1): 1000, ("R (2)", 2): 1001}
    assert len({row.unet_sha256 for row in rows}) == 4 and {row.gan for row in rows} == {""}
    assert ONE_GAN not in printed and "GAN" not in printed, "there is none"


def test_one_replicate_has_no_p_value(finished, experiments):
    """The same folder: all jobs are done; afterwards, the second replicate is still there."""
    before = trained(finished)
    whole = (finished / "results.csv").read_bytes()
    printed = experiments.run(finished, replicates=1)
    (content,) = read_json(finished / "results.json")["experiments"]
    lacking = ("se", "df", "interval", "p", "p_holm", "detectable", "wilcoxon_p", "effect")
    assert all(one[key] is None for one in content["comparisons"] for key in lacking)
    assert {one["verdict"] for one in content["comparisons"]} == {"not tested"}
    words = (finished / "report.md").read_text()
    assert "p (Holm)" not in printed and ONE_GAN in printed
    for text in (printed, words, (finished / "report.html").read_text(), json.dumps(content)):
        assert ONE_REPLICATE in text and "Wilcoxon" not in text and "< 0.001" not in text
    verdicts = [line for line in words.splitlines() if "| not tested |" in line]
    assert len(verdicts) >= 4
    for line in verdicts[:4]:  # target, verdict, difference; then interval, p, and what is detectable
        assert line.strip("| ").split(" | ")[3:] == ["–", "–", "–"]
    rows = (finished / "results.csv").read_bytes()
    assert whole.startswith(rows) and len(read_rows(finished / "results.csv")) == 3 * 4 * 4
    experiments.run(finished)
    assert (finished / "results.csv").read_bytes() == whole and trained(finished) == before


def test_convergence_validation_and_a_larger_plan(experiments, finished, tmp_path):
    out, val = tmp_path / "out", write_volumes(tmp_path / "val.zip", {"v": "v"})
    experiments.run(out, f"--val={val}", arms="R", replicates=1, convergence=1, fake=None)
    (content,) = read_json(out / "results.json")["experiments"]
    (one,) = content["convergence"]
    assert one["arm"] == "R" and one["steps"] == [1, 2, 4]
    tests = [load_evaluation(out / "tests/R" / name / "results.json") for name in ("half", "1", "double")]
    assert [test.model.info.training.steps for test in tests] == [1, 2, 4]
    for target in targets_of(RING):
        assert one["dice"][target.title] == [test.summary(target).mean for test in tests]
    assert one["flagged"] == (tests[2].regions["whole"].mean - tests[1].regions["whole"].mean > 0.005)
    rows = read_rows(out / "results.csv")
    assert {row.replicate for row in rows} == {1} and len(rows) == 4 * 4, "neither half nor double is in the tables"

    # Validation patients draw a curve, and change nothing.
    curve = read_json(out / "unets/R/1/training.json")["curve"]
    assert all(point["val"] is not None for point in curve)
    plain = [row for row in read_rows(finished / "results.csv") if (row.arm, row.replicate) == ("R", 1)]
    assert [row.dice for row in rows] == [row.dice for row in plain]

    # More arms and replicates leave what is there.
    before = trained(out)
    experiments.run(out, f"--val={val}", arms="A+R*flip; R", replicates=2, fake=None)
    assert before.items() <= trained(out).items()
    assert {row.unet_sha256 for row in rows} <= {row.unet_sha256 for row in read_rows(out / "results.csv")}

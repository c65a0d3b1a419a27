"""Plans of experiments: which U-Nets are trained on what, and what another plan leaves as it is."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from dnnlib.jobs import Graph, result_of
from segmentation.arms import TABLES
from segmentation.config import UNetRecipe
from segmentation.experiment import PROGRAMS, RECIPES, experiment_jobs, fakes_of
from segmentation.experiment_options import ExperimentOptions, plan_experiment

OWN = {"arm", "fake", "steps", "seed", "outdir"}  # options in which trainings of one experiment may differ


def asked(**changed):
    given = {"real": "real.zip", "fake": "fake-{r}.zip", "test": "test.zip", "outdir": "out"}
    return ExperimentOptions(**given | {"replicates": 2} | changed)


def jobs_of(folder="", given=(), resolution=64, **changed):
    """Jobs of a plan by their names."""
    options = asked(**changed)
    plan = plan_experiment(options, dict(given), resolution)
    jobs = experiment_jobs(replace(plan, folder=folder), options.archives)
    assert len({job.name for job in jobs}) == len(jobs), "names are unique"
    assert len({output for job in jobs for output in job.outputs}) == sum(len(job.outputs) for job in jobs)
    return {job.name: job for job in jobs}


def option_of(job, name, default=None):
    """Value of an option in a job's command."""
    found = [word.partition("=")[2] for word in job.command if word.startswith(f"--{name}=")]
    assert len(found) <= 1, job.command
    return found[0] if found else default


def trainings(jobs):
    return {name: job for name, job in jobs.items() if job.command[:3] == ["-m", "segmentation", "train"]}


def options_of(job):
    """Options of a job's command."""
    return dict(word[2:].split("=", 1) for word in job.command[3:])


# --- one plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arms, number", [("table1", 3), ("table2", 5), ("R; R; F*full; 2A", 4)])
@pytest.mark.parametrize("replicates", [1, 3])
@pytest.mark.parametrize("convergence", [True, False])
def test_every_arm_is_trained_and_tested_in_every_replicate(arms, number, replicates, convergence):
    jobs = jobs_of(arms=arms, replicates=replicates, convergence=convergence)
    trained = trainings(jobs)
    expected = number * (replicates + 2 * convergence)
    assert len(trained) == expected
    tests = {name: job for name, job in jobs.items() if name.startswith("test-")}
    assert {name.removeprefix("unet-") for name in trained} == {name.removeprefix("test-") for name in tests}
    for name, job in tests.items():
        assert job.needs and {need for need, _ in job.needs} == {name.replace("test-", "unet-")}
        assert option_of(job, "data") == "test.zip" and "test.zip" in job.inputs
    agreements = set(jobs) - set(trained) - set(tests)
    assert agreements == {f"agreement-{r}" for r in range(1, replicates + 1)}


def test_every_training_excludes_the_test_patients_and_reads_only_its_inputs():
    jobs = jobs_of(arms="R; F; F+R; 3A; R*full", val="val.zip")
    for job in jobs.values():
        words = [word.partition("=")[2] for word in job.command if word.endswith(".zip")]
        assert set(words) == {path for path in job.inputs if path.endswith(".zip")}, job.name
        assert len(set(job.inputs)) == len(job.inputs)
    for job in trainings(jobs).values():
        assert option_of(job, "exclude") == "test.zip" and option_of(job, "val") == "val.zip"
        assert option_of(job, "real") == "real.zip"
        assert (option_of(job, "fake") is not None) == ("F" in option_of(job, "arm"))
        assert "--force" not in job.command and "allow" not in str(job.command)


def test_all_trainings_have_the_same_options():
    """But for the slices, the seed and, to show convergence, the steps."""
    jobs = trainings(jobs_of(arms="table2", given={"lr": 0.02, "lesion_free": 0.0}))
    common = [{k: v for k, v in options_of(job).items() if k not in OWN} for job in jobs.values()]
    assert all(one == common[0] for one in common)
    assert common[0]["lr"] == "0.02" and common[0]["lesion-free"] == "0.0" and common[0]["batch"] == "8"
    steps = {name: int(option_of(job, "steps")) for name, job in jobs.items()}
    full = RECIPES["small"]["steps"]
    for name, number in steps.items():
        expected = {"half": full // 2, "double": 2 * full}.get(name.rpartition("-")[2], full)
        assert number == expected == jobs[name].work, name


def test_convergence_is_shown_of_the_first_replicate():
    jobs = jobs_of(arms="R; F")
    for name, length in itertools.product(("R", "F"), ("half", "double")):
        first, other = options_of(jobs[f"unet-{name}-1"]), options_of(jobs[f"unet-{name}-{length}"])
        differ = {key for key in first if first[key] != other[key]}
        assert differ == {"steps", "outdir"} and first.keys() == other.keys()
    assert option_of(jobs_of(arms="R", given={"steps": 1})["unet-R-half"], "steps") == "1"


def test_a_replicate_has_a_seed_and_fakes_of_its_own():
    jobs = trainings(jobs_of(arms="R; F; F+R; R; F", replicates=3, convergence=False, seed=7))
    seeds = {name: int(option_of(job, "seed")) for name, job in jobs.items()}
    assert [seeds[f"unet-{arm}-{r}"] for arm in ("R", "F", "F-R") for r in (1, 2, 3)] == [7, 8, 9] * 3
    assert [seeds[f"unet-R-2nd-{r}"] for r in (1, 2, 3)] == [1007, 1008, 1009]
    for name, job in jobs.items():
        if "F" in name:
            assert option_of(job, "fake") == f"fake-{name[-1]}.zip"
    of_one = trainings(jobs_of(arms="F", fake="one.zip", replicates=3))
    assert {option_of(job, "fake") for job in of_one.values()} == {"one.zip"}


def test_which_archives_fakes_stand_for():
    assert fakes_of(None, 3) == () and fakes_of("f.zip", 3) == ("f.zip",)
    assert fakes_of("{r}/f-{r}.zip", 2) == ("1/f-1.zip", "2/f-2.zip")


def test_real_trained_networks_are_tested_on_each_archive_of_fakes():
    jobs = jobs_of(arms="F; R; R", replicates=3)
    for r in (1, 2, 3):
        job = jobs[f"agreement-{r}"]
        assert job.needs[0] == ("unet-R-1", 0) and option_of(job, "data") == f"fake-{r}.zip"
        assert job.outputs[0] == f"agreement/{r}/results.json"
    assert [name for name in jobs_of(fake="one.zip") if name.startswith("agreement")] == ["agreement-1"]
    assert not [name for name in jobs_of(arms="F; 3A+R") if name.startswith("agreement")], "none learns from R alone"
    assert not [name for name in jobs_of(arms="R", fake=None) if name.startswith("agreement")]


def test_a_folder_of_its_own():
    """Two tables may share an output folder."""
    first, second = jobs_of(folder="table1", arms="table1"), jobs_of(folder="table2", arms="table2")
    assert not first.keys() & second.keys()
    assert all(name.startswith("table1-") for name in first)
    for job in first.values():
        assert all(output.startswith("table1/") for output in job.outputs)
        assert option_of(job, "outdir").startswith("{out}/table1/")
        assert all(need.startswith("table1-") for need, _ in job.needs)
    Graph(Path("out"), PROGRAMS, [*first.values(), *second.values()])  # refuses what does not go together


@pytest.mark.parametrize(
    "resolution, cfg, expected", [(64, "auto", "small"), (65, "auto", "full"), (64, "full", "full")]
)
def test_recipes(resolution, cfg, expected):
    plan = plan_experiment(asked(cfg=cfg), {"batch": 3}, resolution)
    assert plan.options == RECIPES[expected] | {"batch": 3}
    UNetRecipe(**plan.options)


def test_names_of_plans():
    for name, arms in TABLES.items():
        plan = plan_experiment(asked(arms=f" {name.upper()}"), {}, 64)
        assert plan.name == name and [arm.name for arm in plan.arms] == arms.split("; ")
        assert plan.title.startswith(f"Table {name[-1]}: ")
    plan = plan_experiment(asked(arms=TABLES["table1"]), {}, 64)
    assert (plan.name, plan.title) == ("arms", "Comparison of arms"), "a list of arms claims nothing of the paper"


# --- another plan in the same folder --------------------------------------------------------------------------------


@pytest.fixture
def archives(tmp_path):
    """Files in place of archives: a plan does not open them."""
    names = ["real", "test", "val", *(f"fake-{r}" for r in range(1, 6))]
    for name in names:
        (tmp_path / f"{name}.zip").write_text(name)
    (tmp_path / "out/unets/R/1").mkdir(parents=True)
    return {name: str(tmp_path / f"{name}.zip") for name in ("real", "test")} | {
        "fake": str(tmp_path / "fake-{r}.zip"),
        "outdir": str(tmp_path / "out"),
    }


def fingerprints(archives, tmp_path, **changed):
    """What is wanted of each training and each agreement, whose changes make a job run again."""
    jobs = jobs_of(**archives | changed)
    graph = Graph(tmp_path / "out", PROGRAMS, list(jobs.values()))
    for name in trainings(jobs):
        path = tmp_path / f"out/unets/{name}.safetensors"
        path.write_text(name)
        graph._results[name] = [path, path]
    return {name: graph.look(job).wanted for name, job in jobs.items()}


@pytest.mark.parametrize(
    "changed",
    [
        {"replicates": 5},
        {"arms": "R; F; 3F+R; 3A+R*full"},
        {"arms": "F; R; F; R", "replicates": 3},
        {"convergence": False, "replicates": 3},
        {"margin": 0.1},
    ],
)
def test_jobs_that_exist_are_left_as_they_are(archives, tmp_path, changed):
    before = fingerprints(archives, tmp_path, arms="R; F")
    after = fingerprints(archives, tmp_path, **{"arms": "R; F"} | changed)
    both = before.keys() & after.keys()
    assert len(both) >= 10 and {name: before[name] for name in both} == {name: after[name] for name in both}
    if "convergence" not in changed:
        assert before.keys() <= after.keys()


@pytest.mark.parametrize("name", ["real", "test", "fake-1", "fake-2"])
def test_another_archive_of_the_same_name_is_learned_from_anew(archives, tmp_path, name):
    before = fingerprints(archives, tmp_path, arms="R; F; F+R")
    (tmp_path / f"{name}.zip").write_text("other")
    after = fingerprints(archives, tmp_path, arms="R; F; F+R")
    redone = {job for job in before if before[job] != after[job]}
    trained = {job for job in before if job.startswith("unet-")}
    expected = {
        "real": trained,
        "test": before.keys() - {"agreement-1", "agreement-2"},
        "fake-1": {job for job in trained if "F" in job and not job.endswith("-2")} | {"agreement-1"},
        "fake-2": {"unet-F-2", "unet-F-R-2", "agreement-2"},
    }
    assert redone == expected[name], "tests follow if the networks come out different"


def test_another_seed_or_number_of_steps_trains_anew(archives, tmp_path):
    before = fingerprints(archives, tmp_path)
    for changed in ({"seed": 1}, {"given": {"steps": 9}}):
        after = fingerprints(archives, tmp_path, **changed)
        assert {job for job in before if before[job] != after[job]} == {
            job for job in before if job.startswith("unet-")
        }


def test_a_result_stands_for_an_archive():
    """reproduce.py makes the archives in jobs of the same graph."""
    jobs = jobs_of(fake=result_of("generate"), real=result_of("convert"), test=result_of("convert", 1), arms="F")
    needs = jobs["unet-F-1"].needs
    assert set(needs) == {("generate", 0), ("convert", 0), ("convert", 1)}

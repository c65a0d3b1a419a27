"""Results of an experiment's jobs are collected only if they are of the files that are there."""

import shutil

import pytest

from dnnlib.errors import UserError
from dnnlib.jobs import Graph
from rings import run, write_fakes, write_volumes
from segmentation import evaluate
from segmentation.collect import collect
from segmentation.experiment import PROGRAMS, Archives, experiment_jobs
from segmentation.experiment_options import ExperimentOptions, plan_experiment

STEPS = {"steps": 2, "batch": 2, "width": 2}


class Experiment:
    """An experiment whose jobs are done, in this process."""

    def __init__(self, folder):
        self.folder, self.outdir = folder, folder / "out"
        real = write_volumes(folder / "real.zip", {"r0": "r0", "r1": "r1"})
        fakes = [write_fakes(folder / f"fake-{r}.zip", 8, of=f"gan {r}") for r in (1, 2)]
        test = write_volumes(folder / "test.zip", {name: name for name in "abc"})
        self.archives = Archives(str(real), tuple(map(str, fakes)), str(test))
        asked = ExperimentOptions(
            real=str(real), test=str(test), arms="R; F", replicates=2, outdir=str(self.outdir), convergence=True
        )
        self.plan = plan_experiment(asked, STEPS, 32)
        graph = Graph(self.outdir, PROGRAMS, experiment_jobs(self.plan, self.archives))
        for job in graph.in_order():
            look = graph.look(job)
            code, output = run(*graph.begin(look)[2:])
            assert code == 0, output
            graph.end(look, 1.0)

    def collected(self):
        return collect(self.plan, self.archives, self.outdir, [])


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "draw_examinations", lambda path, *_: path.write_bytes(b""))  # takes most of the time
        return Experiment(tmp_path_factory.mktemp("collect"))


def test_rows_name_the_files_that_they_are_of(experiment):
    study = experiment.collected()
    assert {row.test_sha256 for row in study.rows} == {study.test.facts.sha256} and study.gans == 2
    for row in study.rows:
        fake = study.fakes[row.replicate - 1]
        named = (row.real_sha256, row.fake_sha256, row.gan)
        assert named == (
            (study.real.facts.sha256, "", "") if row.arm == "R" else ("", fake.facts.sha256, fake.snapshots[0])
        )


def change_archive(path):
    """Write as many slices of as many patients, with other values."""
    if path.name.startswith("fake"):
        write_fakes(path, 8, first=100, of="gan 1")
    else:
        names = "abc" if path.name == "test.zip" else ("r0", "r1")
        write_volumes(path, {name: name for name in names}, pixel=1.1)


@pytest.mark.parametrize("name", ["real.zip", "fake-1.zip", "fake-2.zip", "test.zip"])
def test_an_archive_that_changed_while_jobs_ran_is_noticed(experiment, tmp_path, name):
    path = experiment.folder / name
    shutil.copy2(path, tmp_path / name)
    change_archive(path)
    try:
        with pytest.raises(UserError, match=rf"{name} is not the file that .*results.json is of.*same command again"):
            experiment.collected()
    finally:
        shutil.move(tmp_path / name, path)
    experiment.collected()


@pytest.mark.parametrize("folder", ["F/2", "R/half", "F/double"])
def test_a_unet_put_in_place_of_another_one_is_noticed(experiment, tmp_path, folder):
    path = experiment.outdir / "unets" / folder / "unet.safetensors"
    shutil.copy2(path, tmp_path / "kept")
    shutil.copy2(experiment.outdir / "unets/R/1/unet.safetensors", path)
    try:
        with pytest.raises(UserError, match="unet.safetensors is not the file that"):
            experiment.collected()
    finally:
        shutil.move(tmp_path / "kept", path)

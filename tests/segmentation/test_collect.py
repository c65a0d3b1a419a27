"""Results of jobs, put together: each number from the right file. The U-Nets were never trained."""

import shutil
from dataclasses import replace
from itertools import product

import pytest

from dnnlib.errors import UserError
from dnnlib.files import json_bytes, sha256
from helpers.evaluations import evaluation, examination
from rings import RING, write_fakes, write_volumes
from segmentation.archive_facts import collect_facts
from segmentation.collect import collect
from segmentation.experiment import Archives, Trial, agreement_results, convergence_of, fakes_of, replicates_of
from segmentation.experiment_options import ExperimentOptions, plan_experiment
from segmentation.fit import LossPoint, TrainRecord
from segmentation.study_files import to_content
from segmentation.tables import ONE_GAN, ONE_REPLICATE, describe_study
from slices.archive.reader import ArchiveReader

TESTED = {"a-0": "a", "a-1": "a", "b-0": "b", "c-0": "c"}  # volume -> patient


class Finished:
    """An output folder in which all jobs of an experiment are done.

    dice: (arm, budget or replicate) -> that of every test. fakes: in each archive. found: other fields of TargetDice.
    """

    def __init__(
        self, folder, arms="R; F", replicates=2, fake="fake-{r}.zip", snapshots="st", dice=None, fakes=8, **found
    ):
        self.outdir, self.dice, self.found = folder / "out", dice or {}, found
        folder.mkdir(exist_ok=True)
        for number, snapshot in enumerate(snapshots, start=1):
            write_fakes(folder / f"fake-{number}.zip", fakes, first=fakes * number, of=snapshot)
        asked = ExperimentOptions(
            real=str(write_volumes(folder / "real.zip", {"r0": "r0", "r1": "r1"})),
            test=str(write_volumes(folder / "test.zip", TESTED)),
            fake=None if fake is None else str(folder / fake),
            arms=arms,
            replicates=replicates,
            outdir=str(self.outdir),
        )
        self.plan, self.archives = plan_experiment(asked, {"steps": 10}, 32), asked.archives
        for n, trial in enumerate([*replicates_of(self.plan), *convergence_of(self.plan)]):
            self.write_network(trial, n)
            self.write_results(trial, trial.results, self.archives.test, TESTED, self.dice_of(trial))
        for number, fakes in enumerate(self.archives.fakes if self.plan.baseline else (), start=1):
            first = Trial(self.plan, self.plan.baseline, 1)
            patients = {None: "generated-9"}
            self.write_results(first, agreement_results(self.plan, number), fakes, patients, number / 10)

    def dice_of(self, trial):
        return self.dice.get((trial.arm.name, trial.budget or trial.replicate), 0.5)

    def write_network(self, trial, number):
        path = self.outdir / trial.model
        path.parent.mkdir(parents=True)
        path.write_text(f"network {number}")
        record = TrainRecord(str(path), self.info(trial), "cpu", 1.0, (LossPoint(10, 1.0),))
        (self.outdir / trial.record).write_bytes(json_bytes(record))

    def info(self, trial):
        learned = [self.archives.real] * trial.arm.uses_real
        learned += [self.archives.fake(trial.replicate)] if trial.arm.uses_fakes else []
        training = {"steps": trial.steps, "seed": trial.arm.seed(0, trial.replicate)}
        told = evaluation(examination(1, RING), schema=RING, **training).model.info
        return replace(told, archives=tuple(collect_facts(ArchiveReader(path)) for path in learned))

    def write_results(self, trial, name, tested, volumes, dice):
        examinations = [
            examination(dice, RING, patient, volume, of=4, **self.found) for volume, patient in volumes.items()
        ]
        made = evaluation(*examinations, schema=RING, tested=collect_facts(ArchiveReader(tested)))
        model = replace(made.model, sha256=sha256(self.outdir / trial.model), info=self.info(trial))
        (self.outdir / name).parent.mkdir(parents=True)
        (self.outdir / name).write_bytes(json_bytes(replace(made, model=model)))

    def study(self):
        return collect(self.plan, self.archives, self.outdir, ["python train.py"])


def test_rows_name_what_their_network_learned_from(tmp_path):
    dice = {("R", 1): 0.1, ("R", 2): 0.2, ("F", 1): 0.3, ("F", 2): 0.4}
    finished = Finished(tmp_path, dice=dice)
    study = finished.study()
    targets = [(target.kind, target.name) for target in study.targets]
    found = [(row.replicate, row.arm, row.examination, (row.kind, row.target)) for row in study.rows]
    assert found == list(product((1, 2), ("R", "F"), TESTED, targets))
    for row in study.rows:
        assert row.dice == dice[row.arm, row.replicate] and row.patient == TESTED[row.examination]
        fakes = tmp_path / f"fake-{row.replicate}.zip"
        assert row.fake_sha256 == (sha256(fakes) if row.arm == "F" else "")
        assert row.gan == ("st"[row.replicate - 1] if row.arm == "F" else "")
        assert row.real_sha256 == (sha256(tmp_path / "real.zip") if row.arm == "R" else "")
        assert row.unet_sha256 == sha256(finished.outdir / f"unets/{row.arm}/{row.replicate}/unet.safetensors")
        assert row.unet_seed == row.replicate - 1
    for (arm, r), unet in study.unets.items():
        assert unet.record.unet.training.seed == r - 1
        assert unet.evaluation.regions["whole"].mean == pytest.approx(dice[arm, r])
    (comparison, _) = study.comparisons
    assert comparison.claim.sentence == "F differs from R" and comparison.difference == pytest.approx(0.2)


def test_every_number_has_its_column(tmp_path):
    found = {"truth": 0, "predicted": 7, "masked_dice": 0.75, "removed": 3, "hd95": 12.5}
    for row in Finished(tmp_path, replicates=1, snapshots="s", **found).study().rows:
        assert (row.dice, row.masked_dice, row.hd95_mm) == (0.5, 0.75, 12.5)
        assert (row.truth_voxels, row.predicted_voxels, row.outside_voxels) == (0, 7, 3)
        assert row.truth_empty and not row.prediction_empty


@pytest.mark.parametrize("arms, used", [("R; R", 8), ("R; F", 8), ("R; 2F; F+R", 16), ("R; 3F", 24)])
def test_content_is_that_of_the_slices_that_are_learned_from(tmp_path, arms, used):
    content = Finished(tmp_path, arms, replicates=1, snapshots="s", fakes=30).study().content
    assert {name: one.areas.num_slices for name, one in content.items()} == {"real": 8, "fakes 1": used}


def test_options_are_those_of_every_training(tmp_path):
    """Those that nobody gave too; not what arms and replicates differ in."""
    study = Finished(tmp_path, arms="R; R*full").study()
    assert study.options["empty"] == 0.05 and study.options["average"] == 0.25 and study.options["steps"] == 10
    assert not {"seed", "augment", "lesion_free"} & study.options.keys()


@pytest.mark.parametrize(
    "snapshots, fake, arms, gans",
    [
        ("st", "fake-{r}.zip", "R; F", 2),
        ("ss", "fake-{r}.zip", "R; F", 1),
        ("s", "fake-1.zip", "R; F", 1),
        ((None, None), "fake-{r}.zip", "R; F", 2),
        ("st", "fake-{r}.zip", "R; R", 0),
        ("", None, "R; R", 0),
    ],
)
def test_gans_are_counted_by_their_snapshots(tmp_path, snapshots, fake, arms, gans):
    study = Finished(tmp_path, arms=arms, fake=fake, snapshots=snapshots).study()
    assert study.gans == gans
    told = (describe_study(study), str(to_content(study)["notes"]))
    assert all((ONE_GAN in text) == (gans == 1) for text in told[1:])
    assert (f"fakes of {gans} GAN" in told[0]) == (gans > 0)


def test_convergence_is_that_of_the_first_replicate(tmp_path):
    dice = {("R", "half"): 0.7, ("R", 1): 0.8, ("R", "double"): 0.8049, ("R", 2): 0.1}
    dice |= {("F", "half"): 0.5, ("F", 1): 0.6, ("F", "double"): 0.6051, ("F", 2): 0.9}
    study = Finished(tmp_path, dice=dice).study()
    for one in study.convergence:
        assert one.steps == (5, 10, 20)
        for found in one.dice.values():
            assert found == pytest.approx([dice[one.arm, budget] for budget in ("half", 1, "double")])
    assert list(study.convergence[0].dice) == [target.title for target in study.targets]
    assert [(one.arm, one.flagged) for one in study.convergence] == [("R", False), ("F", True)]
    assert study.flagged == {"F"}


def test_an_arm_that_gets_worse_with_more_steps_is_not_flagged(tmp_path):
    study = Finished(tmp_path, arms="R", dice={("R", "double"): 0.3}, fake=None, snapshots="").study()
    assert not study.flagged and study.comparisons == ()


def test_agreement_is_that_of_the_first_network_of_real_slices(tmp_path):
    study = Finished(tmp_path, arms="F; R", dice={("R", 1): 0.9}).study()
    assert [one.slices for one in study.agreement] == ["test patients", "fakes 1", "fakes 2"]
    for one, dice in zip(study.agreement, (0.9, 0.1, 0.2), strict=True):
        assert list(one.dice.values()) == pytest.approx([dice] * 4)
    assert Finished(tmp_path / "other", arms="F; F+R").study().agreement == ()


def test_notes_fit_an_experiment(tmp_path):
    """Its ± is between replicates, not patients, and what holds for all networks is said once."""
    study = Finished(tmp_path, replicates=1, fake="fake-1.zip").study()
    assert len(set(study.notes)) == len(study.notes) and "±" not in "".join(study.notes)
    words = "test data: 4 examinations of 3 patients, 8 slices; a patient counts once, with the mean"
    assert study.notes[0].startswith(words)
    assert to_content(study)["notes"][:2] == (ONE_GAN, ONE_REPLICATE)
    assert "training slices without lesion: 0.0% of the real, 0.0% of the fakes 1" in study.notes


def change_archive(path):
    """Write as many slices of as many patients, with other values."""
    if path.name.startswith("fake"):
        write_fakes(path, 8, first=100, of="s")
    else:
        names = TESTED if path.name == "test.zip" else {"r0": "r0", "r1": "r1"}
        write_volumes(path, names, pixel=1.1)


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    return Finished(tmp_path_factory.mktemp("collect"))


@pytest.mark.parametrize("name", ["real.zip", "fake-1.zip", "fake-2.zip", "test.zip"])
def test_an_archive_that_changed_while_jobs_ran_is_noticed(unchanged, tmp_path, name):
    path = unchanged.outdir.parent / name
    shutil.copy2(path, tmp_path / name)
    change_archive(path)
    try:
        with pytest.raises(UserError, match=rf"{name} is not the file that .*results.json is of.*same command again"):
            unchanged.study()
    finally:
        shutil.move(tmp_path / name, path)
    unchanged.study()


@pytest.mark.parametrize("folder", ["F/2", "R/half", "F/double"])
def test_a_unet_put_in_place_of_another_one_is_noticed(unchanged, tmp_path, folder):
    path = unchanged.outdir / "unets" / folder / "unet.safetensors"
    shutil.copy2(path, tmp_path / "kept")
    shutil.copy2(unchanged.outdir / "unets/R/1/unet.safetensors", path)
    try:
        with pytest.raises(UserError, match="unet.safetensors is not the file that"):
            unchanged.study()
    finally:
        shutil.move(tmp_path / "kept", path)


def test_archives_of_replicates():
    archives = Archives("r", fakes_of("f-{r}", 3), "t")
    assert [archives.fake(r) for r in (1, 2, 3)] == ["f-1", "f-2", "f-3"]
    assert [Archives("r", ("f",), "t").fake(r) for r in (1, 2, 3)] == ["f"] * 3

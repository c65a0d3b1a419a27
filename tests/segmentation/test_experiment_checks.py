"""Bad input of an experiment: one message before any training, and nothing written."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.drawn import NO_CLASSES
from rings import RING, draw_ring, refused, run, write_fakes, write_patients, write_rings, write_volumes
from segmentation import run_experiment
from segmentation.experiment_checks import check_experiment
from segmentation.experiment_options import ExperimentOptions, plan_experiment
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter

TESTED = {name: name for name in "abc"}


class Files:
    """Archives of a good experiment, and calls of it in which some of them are replaced."""

    def __init__(self, folder):
        self.folder, self.outdir = folder, folder / "out"
        self.given = {
            "real": write_volumes(folder / "real.zip", {"r0": "r0", "r1": "r1"}),  # eight slices
            "fake": write_fakes(folder / "fake.zip", 16),
            "test": write_volumes(folder / "test.zip", TESTED),
            "arms": "table1",
            "replicates": 1,
            "outdir": self.outdir,
        }

    def arguments(self, **changed):
        values = {name: value for name, value in (self.given | changed).items() if value is not None}
        return ["experiment", *(f"--{name.replace('_', '-')}={value}" for name, value in values.items())]

    def refused(self, **changed):
        """The message of a call that must be refused without a trace."""
        output = refused(*self.arguments(**changed))
        assert "Traceback" not in output and not self.outdir.exists(), output
        return output


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(autouse=True)
def no_job_runs(monkeypatch):
    def fail(*_):
        raise AssertionError("a job would start")

    monkeypatch.setattr(run_experiment.Graph, "run", fail)


def warnings_of(files, **changed):
    """Warnings about archives that are accepted."""
    given = {name: str(value) if name in ("real", "fake", "test", "val") else value for name, value in changed.items()}
    values = {name: str(value) if name != "replicates" else value for name, value in files.given.items()}
    asked = ExperimentOptions(**values | given)
    return check_experiment(plan_experiment(asked, {}, 32), asked.archives)


def test_the_archives_that_others_replace_are_good(files, tmp_path):
    assert warnings_of(files) == []
    val = write_patients(tmp_path / "val.zip", ["v0", "v1"])
    assert warnings_of(files, val=val, arms="R; F; F+R; R", replicates=3) == []
    assert warnings_of(files, arms="R; R") == ["note: no arm learns from the fakes of --fake"]


# --- archives that don't fit each other -------------------------------------------------------------------------------

OTHER = replace(RING, contrasts=("t1", "t2"))


@pytest.mark.parametrize("which", ["fake", "test", "val"])
def test_another_schema_is_refused(files, tmp_path, which):
    other = (
        write_fakes(tmp_path / "o.zip", 16, OTHER)
        if which == "fake"
        else write_patients(tmp_path / "o.zip", ["d", "e", "f"], schema=OTHER)
    )
    output = files.refused(**{which: other})
    assert f"{other} has the channels t1, t2" in output and "t1, flair" in output


@pytest.mark.parametrize("which", ["fake", "test", "val"])
def test_another_resolution_is_refused(files, tmp_path, which):
    other = write_fakes(tmp_path / "o.zip", 16, size=48)
    output = files.refused(**{which: other})
    assert f"{other} has 48×48 pixels" in output and "32×32" in output


@pytest.mark.parametrize("which", ["fake", "test", "val"])
def test_pixels_of_another_size_are_refused(files, tmp_path, which):
    path = tmp_path / "o.zip"
    if which == "fake":
        write_fakes(path, 16, pixel=(1.5, 1.5))
    else:
        write_volumes(path, {"d": "d", "e": "e", "f": "f"}, pixel=1.5)
    output = files.refused(**{which: path})
    assert f"{path} has pixels of 1.5 mm" in output and "pixels of 1 mm" in output and "--fov" in output


def test_slices_that_no_unet_takes_are_refused(files, tmp_path):
    """They fit each other, so that only the trainings would refuse them."""
    small = {
        "real": write_plain(tmp_path / "real.zip", ["r0", "r1"], size=16),
        "fake": write_fakes(tmp_path / "fake.zip", 4, size=16),
        "test": write_plain(tmp_path / "test.zip", ["a", "b", "c"], size=16),
    }
    assert "16×16 pixels are too few" in files.refused(**small)
    bare = {
        "real": write_plain(tmp_path / "bare.zip", ["r0", "r1"], NO_CLASSES),
        "fake": None,
        "test": write_plain(tmp_path / "bare-test.zip", ["a", "b", "c"], NO_CLASSES),
        "arms": "R",
    }
    assert "no lesion classes" in files.refused(**bare)


def write_plain(path, patients, schema=RING, size=32):
    """An archive with one real slice of each patient, of any schema and size."""
    stored = draw_ring(np.random.RandomState(1), schema, size)
    return write_rings(path, [(patient, stored) for patient in patients], schema)


# --- patients that a network knows ------------------------------------------------------------------------------------


def test_fakes_of_a_gan_that_saw_test_patients_are_refused(files, tmp_path):
    """Even those of the last replicate."""
    write_fakes(tmp_path / "fake-1.zip")
    leaky = write_fakes(tmp_path / "fake-2.zip", seen=("r0", "b"))
    output = files.refused(fake=tmp_path / "fake-{r}.zip", replicates=2)
    assert f"{leaky} must share no patient with" in output and "a GAN that learned from b" in output


def test_test_patients_in_training_are_refused(files, tmp_path):
    both = write_volumes(tmp_path / "both.zip", {"a": "a", "b": "b", "r1": "r1"})
    assert "holds slices of r1" in files.refused(test=both, fake=None, arms="R")
    part = write_patients(tmp_path / "part.zip", ["d", "e"], part="test")
    assert "of the test part" in files.refused(real=part, fake=None, arms="R")


@pytest.mark.parametrize(
    "patients, arms, words",
    [
        (["v0", "a"], "table1", "share the patients a;"),
        (["v0", "r1"], "table1", "slices of r1"),
        (["v0", "g"], "R; F+R", "generated slices of a GAN that learned from g"),
        (["v0", "r1"], "F", "generated slices of a GAN that learned from r1"),
    ],
)
def test_validation_patients_must_be_in_neither_training_nor_test(files, tmp_path, patients, arms, words):
    val = write_patients(tmp_path / "val.zip", patients)
    fake = write_fakes(tmp_path / "fake.zip", seen=("r0", "r1", "g"))
    output = files.refused(val=val, arms=arms, fake=fake)
    assert f"--val {val}" in output and words in output and "neither training nor test" in output


def test_a_validation_archive_of_the_test_part_is_refused(files, tmp_path):
    val = write_patients(tmp_path / "val.zip", ["v0"], part="test")
    assert f"{val}: 1 of its 1 slice" in files.refused(val=val)


# --- archives for another purpose -------------------------------------------------------------------------------------


def test_fakes_and_real_slices_in_each_others_place_are_refused(files, tmp_path):
    fakes = write_fakes(tmp_path / "f.zip", 16)
    real = write_volumes(tmp_path / "more.zip", {name: name for name in ("m0", "m1", "m2")})
    assert f"{fakes} was given as --real, but 16 of its 16 slices are generated" in files.refused(real=fakes)
    assert f"{real} was given as --fake, but 12 of its 12 slices have no seed" in files.refused(fake=real)
    assert f"{fakes} was given as --test, but holds generated slices" in files.refused(test=fakes)
    again = tmp_path / "again.zip"  # exported and converted again
    with ArchiveWriter(again, RING, 32, {}, seen=["z"]) as writer:
        for patient in "def":
            writer.add(ArchiveReader(real).read(0), patient=patient)
    assert f"{again} was given as --test, but holds generated slices" in files.refused(test=again)


def test_missing_and_broken_archives_are_refused(files, tmp_path):
    assert "F needs fakes: give their archive with --fake" in files.refused(fake=None)
    write_fakes(tmp_path / "fake-1.zip")
    output = files.refused(fake=tmp_path / "fake-{r}.zip", replicates=2)
    assert "fake-2.zip: no such file" in output
    for which in ("real", "test", "val"):
        assert "none.zip: no such file" in files.refused(**{which: tmp_path / "none.zip"})
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK")
    assert str(broken) in files.refused(test=broken)


@pytest.mark.parametrize("arms, most", [("R; 3F+R", 24), ("R; 2F", 16)])
def test_too_few_fakes_for_an_arm_are_refused(files, tmp_path, arms, most):
    fakes = write_fakes(tmp_path / "few.zip", most - 1)
    name = arms.split("; ")[1]
    assert f"{fakes} holds {most - 1} slices, but {name} needs {most}" in files.refused(arms=arms, fake=fakes)


# --- what the slices show ---------------------------------------------------------------------------------------------


def write_cores(path, volumes):
    """Volumes whose slices have the class core only."""
    write_volumes(path.with_name("all.zip"), volumes)
    reader = ArchiveReader(path.with_name("all.zip"))
    with ArchiveWriter(path, RING, 32, {}) as writer:
        writer.volumes.update(reader.info.volumes)
        for i, record in enumerate(reader.info.slices):
            contrasts, indices = RING.split(reader.read(i))
            writer.add(
                RING.join(contrasts[None], np.where(indices == 1, 1, 0)[None])[0],
                patient=record.patient,
                volume=record.volume,
                index=record.index,
            )
    return path


@pytest.mark.parametrize("which, volumes", [("test", TESTED), ("real", {"r0": "r0", "r1": "r1"})])
def test_a_class_absent_from_training_or_test_is_refused(files, tmp_path, which, volumes):
    cores = write_cores(tmp_path / "cores.zip", volumes)
    slices = 4 * len(volumes)
    assert f"{cores}: none of its {slices} slices has the class rim" in files.refused(**{which: cores})


def test_fakes_that_lack_a_class_are_told(files, tmp_path):
    """A poor GAN may never draw it, which is a result; but an arm that can't learn a class is told beforehand."""
    path = tmp_path / "poor.zip"
    with ArchiveWriter(path, RING, 32, {}, seen=["r0", "r1"]) as writer:
        for seed in range(16):
            contrasts, indices = RING.split(ArchiveReader(files.given["fake"]).read(seed))
            kept = np.where((indices == 1) | (seed >= 8), indices, 0)  # the second half has both classes
            writer.add(RING.join(contrasts[None], kept[None])[0], patient=f"g{seed}", seed=seed, snapshot="s")
    assert warnings_of(files, fake=path, arms="R; F; F+R; 2F") == [
        "warning: arm F: none of its slices of poor.zip has the class rim, so it can't learn it"
    ]


def test_a_share_of_lesion_free_slices_that_an_arm_lacks_is_refused(files, tmp_path):
    """The real slices have some, the fakes of one replicate have none."""
    random = np.random.RandomState(3)
    real = write_rings(tmp_path / "real.zip", [(f"r{i}", draw_ring(random, lesion=i > 0)) for i in range(4)])
    write_fakes(tmp_path / "fake-1.zip", lesions=False)
    lacks = write_fakes(tmp_path / "fake-2.zip")
    changed = {"real": real, "fake": tmp_path / "fake-{r}.zip", "lesion_free": 0.2}
    output = files.refused(**changed, replicates=2)
    assert f"{lacks}: all 4 slices have a lesion, but --lesion-free 0.2 asks for slices without" in output


def test_gaps_in_test_volumes_are_refused(files, tmp_path):
    gaps = write_volumes(tmp_path / "gaps.zip", TESTED, slices=(0, 1, 3, 5), of=8)
    output = files.refused(test=gaps)
    assert f"{gaps}: slices are missing in the middle of 3 volumes" in output and "a (2 slices)" in output


@pytest.mark.parametrize("patients", [["a"], ["a", "b"]])
def test_too_few_test_patients_are_refused(files, tmp_path, patients):
    """Even if they have many examinations."""
    volumes = {f"{patient}-{n}": patient for patient in patients for n in range(3)}
    few = write_volumes(tmp_path / "few.zip", volumes)
    output = files.refused(test=few)
    assert f"{few}: {len(patients)} patient" in output and "needs 3 test patients or more" in output


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0, -0.03, 1, "nan"])
def test_a_margin_that_is_none_is_refused(files, margin):
    assert f"--margin {margin}: expected" in files.refused(margin=margin)


@pytest.mark.parametrize(
    "arms, words",
    [
        ("", "an arm is empty"),
        ("R;", "an arm is empty"),
        ("R; X", "X is no arm"),
        ("R; 3R", "R has no number"),
        ("R; 4A+R", "expected 1 to 3 before A"),
        ("R; 300F", "expected 1 to 99 before F"),
        ("R; F+R*strong", "expected one of none, flip, full"),
        ("R; F+F", "has F twice"),
        ("R; table1", "table1 is no arm but a table"),
    ],
)
def test_unknown_notation_is_refused(files, arms, words):
    assert words in files.refused(arms=arms)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"replicates": 0}, "--replicates 0: expected"),
        ({"replicates": 101}, "--replicates 101: expected"),
        ({"jobs": 0}, "--jobs 0: expected"),
        ({"launcher": "no-such-launcher -n1"}, "there is no program no-such-launcher"),
        ({"launcher": "srun '"}, "is no command"),
        ({"steps": 0}, "--steps 0: expected"),
        ({"lr": -1}, "--lr -1: expected"),
        ({"empty": 0.6, "lesion_free": 0.5}, "leave no slice with lesion"),
    ],
)
def test_options_out_of_their_limits_are_refused(files, changed, words):
    assert words in files.refused(**changed)


def test_files_of_others_are_not_replaced(files, tmp_path):
    (tmp_path / "results.csv").write_text("mine")
    output = refused(*files.arguments(outdir=tmp_path))
    assert f"{tmp_path / 'results.csv'} exists already" in output
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_a_plan_writes_nothing(files):
    code, output = run(*files.arguments(dry_run=None), "--dry-run", "--jobs=2")
    assert code == 0 and not files.outdir.exists(), output
    assert "unet-F-R-1: train a U-Net on F+R, replicate 1" in output and "Time: not known yet" in output

"""Provenance: patients that a generator saw, and test patients, stay known when files pass other programs."""

import json
from pathlib import Path

import numpy as np
import pytest

from dnnlib.errors import UserError
from helpers.drawn import draw_slice, write_archive
from slices import leaks
from slices.archive.format import TEST, TRAIN
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.convert.conversion import convert as run_conversion
from slices.convert.options import ConvertOptions
from slices.convert.plan import plan
from slices.convert.recognition import find_cases
from slices.convert.releases import describe_release
from slices.export.export import export_archive
from slices.schema import BRATS

OWN = ("t1,t1ce,t2,flair", "{case}/{case}_{contrast}.nii.gz", "NCR=1,ED=2,ET=4")


@pytest.fixture
def fakes(tmp_path) -> Path:
    random, path = np.random.RandomState(0), tmp_path / "fakes.zip"
    with ArchiveWriter(path, BRATS, 32, {"command": "test"}, seen=["r1", "r2"]) as writer:
        for seed in range(3):
            writer.add(draw_slice(random, 32), patient=f"generated-abc-seed{seed}", seed=seed, snapshot="abc")
    return path


def convert(source: Path, dest: Path, pattern: str = OWN[1], **options) -> list[ArchiveReader]:
    found = find_cases(source, describe_release(OWN[0], pattern, OWN[2]))
    planned = plan(ConvertOptions(resolution=32, slices="all", **options), found, dest)
    return [ArchiveReader(outcome.archive.path) for outcome in run_conversion(planned)]


def exported(archive: Path, form: str = "nifti") -> Path:
    dest = archive.with_suffix("")
    export_archive(archive, dest, form)
    return dest


def test_a_conversion_of_exported_fakes_knows_the_patients_their_generator_saw(fakes, tmp_path):
    (again,) = convert(exported(fakes), tmp_path / "again.zip")
    assert again.info.seen == ("r1", "r2") and len(again.info.patients) == 3
    first, second = again.info.made["remarks"]
    assert first.startswith("generated slices") and second == "all files: generated, says the header"
    r2 = ArchiveReader(write_archive(tmp_path / "other.zip", seen=["r2"]))
    with pytest.raises(UserError, match="a GAN that learned from r2"):
        leaks.refuse_shared(again, r2)
    # A second round of export and conversion.
    (third,) = convert(exported(again.path), tmp_path / "third.zip")
    assert third.info.seen == ("r1", "r2")


def test_fakes_among_patients_and_in_other_folders_are_known(fakes, tmp_path):
    """Links in the layout of another program, to exported fakes and to a patient's own files."""
    folder, real = (
        exported(fakes),
        exported(write_archive(tmp_path / "real.zip", count=2, resolution=32, per_patient=1)),
    )
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for file in (folder / "generated-abc-seed1").glob("*.nii.gz"):
        (mixed / file.name.replace("generated-abc-seed1", "a")).symlink_to(file)
    (name,) = {path.name for path in real.iterdir() if path.name.startswith("drawn0-1")}
    for file in (real / name).glob("*.nii.gz"):
        (mixed / file.name.replace(name, "b")).symlink_to(file)
    (archive,) = convert(mixed, tmp_path / "mixed.zip", "{case}_{contrast}.nii.gz")
    assert archive.info.patients == ["a", "b"] and archive.info.seen == ("r1", "r2")
    assert [names for names in archive.info.made["remarks"].values()] == [["a"], ["a"]]


def test_pictures_tell_the_same(fakes, tmp_path):
    told = json.loads((exported(fakes, "png") / "channels.json").read_text())
    assert told["seen"] == ["r1", "r2"] and "held_out" not in told
    test = write_archive(tmp_path / "test.zip", count=4, part=TEST)
    told = json.loads((exported(test, "png") / "channels.json").read_text())
    assert told["held_out"] == ["drawn0-0", "drawn0-1"] and "seen" not in told


def test_who_was_held_out_stays_so(tmp_path):
    test = exported(write_archive(tmp_path / "test.zip", count=4, resolution=32, per_patient=1, part=TEST))
    (archive,) = convert(test, tmp_path / "again.zip")
    assert {record.part for record in archive.info.slices} == {TEST}
    with pytest.raises(UserError, match="of the test part"):
        leaks.refuse_test_part(archive)
    with pytest.raises(UserError, match="drawn0-.*exported from the test part .*--split-file") as refused:
        convert(test, tmp_path / "folder", test_fraction=0.5)
    assert "train.zip" in str(refused.value) and not (tmp_path / "folder").exists()

    train = exported(write_archive(tmp_path / "train.zip", count=2, resolution=32, per_patient=1, part=TRAIN, seed=7))
    for folder in test.iterdir():
        folder.rename(train / folder.name)
    split = tmp_path / "split.json"
    names = sorted(path.name for path in train.iterdir())
    split.write_text(
        json.dumps({part: [n for n in names if n.startswith(f"drawn{i}")] for part, i in (("train", 7), ("test", 0))})
    )
    readers = convert(train, tmp_path / "folder", split_file=split)
    assert [sorted({r.part for r in reader.info.slices}) for reader in readers] == [[TRAIN], [TEST]]


def test_exports_of_fakes_must_name_patients_and_files_of_other_programs_are_ignored(fakes, tmp_path):
    folder = exported(fakes)
    for file in folder.glob("*/slices.json"):
        told = json.loads(file.read_text())
        del told["seen"]
        file.write_text(json.dumps(told))
    with pytest.raises(UserError, match="slices.json: these slices were generated.*export them again"):
        convert(folder, tmp_path / "again.zip")
    for file, stranger in zip(folder.glob("*/slices.json"), ("no JSON", "[1]", '{"seen": 3, "seed": 1}'), strict=True):
        file.write_text(stranger)
    (archive,) = convert(folder, tmp_path / "again.zip")
    assert archive.info.seen == () and list(archive.info.made["remarks"]) == ["all files: generated, says the header"]

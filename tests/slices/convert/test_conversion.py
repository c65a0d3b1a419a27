"""A conversion: content of its archives, the split, and what an interrupted one leaves."""

import json
import re
import resource
import shutil
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from helpers.commands import content, convert, convert_2018, refused
from helpers.drawn import SHAPE, turned
from helpers.layouts import break_file, draw, write_flat
from slices.archive.reader import ArchiveReader
from slices.convert.options import ConvertOptions
from slices.convert.plan import plan
from slices.convert.recognition import find_cases
from slices.convert.releases import release_of_name
from slices.schema import BRATS


def test_a_plan_settles_what_options_leave_open(release):
    found = find_cases(release, release_of_name("2018"))
    single = plan(ConvertOptions(), found, "all.zip")
    (archive,) = single.archives
    assert (archive.part, archive.choice, single.split) == (None, "tumor", None)
    assert [case.name for case in archive.cases] == ["P0", "P1", "P2", "P3", "P4"]
    assert [path.name for path in single.paths] == ["all.zip"]

    both = plan(ConvertOptions(slices="brain", grade="HGG"), found, "folder")
    assert [(one.part, one.choice) for one in both.archives] == [("train", "brain"), ("test", "all")]
    assert both.archives[0].left_out == {"grade is not HGG": ["P3", "P4"]}
    assert sorted(case.name for one in both.archives for case in one.cases) == ["P0", "P1", "P2"]
    settled = {name: both.settled_options[name] for name in ("test_slices", "test_fraction", "split_seed", "head")}
    assert settled == {"test_slices": "all", "test_fraction": 0.1, "split_seed": 0, "head": None}
    assert [path.name for path in both.paths] == ["train.zip", "test.zip", "split.json"]
    with pytest.raises(FrozenInstanceError):
        both.split = None


def test_one_archive(release, tmp_path):
    output = convert_2018(release, tmp_path / "all.zip")
    reader = ArchiveReader(tmp_path / "all.zip")
    for i in range(len(reader)):
        reader.read_checked(i)
    assert reader.schema == BRATS and reader.resolution == 64
    assert [(r.patient, r.volume, r.index) for r in reader.info.slices] == [
        (p, p, k) for p in ("P0", "P1", "P3", "P4") for k in (3, 4, 5, 6)
    ]
    assert set(reader.info.volumes) == {"P0", "P1", "P3", "P4"}
    assert reader.info.volumes["P1"].shape == SHAPE
    np.testing.assert_array_equal(reader.info.volumes["P1"].affine, turned(np.zeros(SHAPE), "LPS")[1])
    assert list(reader.info.volumes["P1"].windows) == ["t1", "t1ce", "t2", "flair"]
    made = reader.info.made
    assert made["command"] == "dataset_tool.py convert" and made["version"]
    assert made["options"]["resolution"] == 64 and made["options"]["source"] == "release" and made["split"] is None
    assert made["skipped"] == {"patients": {"no slice chosen by 'tumor'": ["P2"]}, "slices": {"no tumor": 34}}
    assert str(tmp_path) not in json.dumps(made)
    assert [path.name for path in tmp_path.iterdir()] == ["all.zip"]
    table = (r"all.zip +4 +16\n", "all.zip  ED +16 +132 ", r"by 'tumor' +1 patient +P2\n", "no tumor +34 slices")
    assert all(re.search(line, output) for line in table), output


def test_train_and_test(release, tmp_path):
    convert_2018(release, tmp_path / "new" / "folder", "--test-fraction", 0.4)
    folder = tmp_path / "new" / "folder"
    assert sorted(content(folder)) == ["split.json", "test.zip", "train.zip"]
    split = json.loads((folder / "split.json").read_text())
    train, test = ArchiveReader(folder / "train.zip"), ArchiveReader(folder / "test.zip")
    assert len(split["train"]) == 3 and len(split["test"]) == 2
    assert sorted(split["train"] + split["test"]) == ["P0", "P1", "P2", "P3", "P4"]
    assert set(train.info.patients) <= set(split["train"]) and set(test.info.patients) == set(split["test"])
    assert len(test) == 20  # all slices of each test patient
    assert train.info.made["split"] == {"part": "train", **split} and test.info.made["split"]["part"] == "test"
    for part, reader in (("train", train), ("test", test)):
        assert reader.info.made["options"]["test_fraction"] == 0.4, part


def test_a_split_can_be_given(release, tmp_path):
    chosen = tmp_path / "chosen.json"
    chosen.write_text('{"train": ["P4", "P0"], "test": ["P1"]}')
    output = convert_2018(release, tmp_path / "out", "--split-file", chosen, "--test-slices", "brain")
    assert ArchiveReader(tmp_path / "out" / "train.zip").info.patients == ["P0", "P4"]
    assert len(ArchiveReader(tmp_path / "out" / "test.zip")) == 10
    assert re.search(r"neither side of the split file +2 patients +P2, P3\n", output), output
    written = tmp_path / "out" / "split.json"
    convert_2018(release, tmp_path / "again", "--split-file", written, "--test-slices", "brain")
    made = ArchiveReader(tmp_path / "again" / "train.zip").info.made
    assert made["split"]["train"] == ["P4", "P0"] and made["options"]["split_file"] == "split.json"
    assert (tmp_path / "again" / "split.json").read_bytes() == written.read_bytes()

    chosen.write_text('{"train": ["P4", "P0"], "test": ["P9"]}')
    output = convert_2018(release, tmp_path / "none", "--split-file", chosen, expected=2)
    refused(output, "chosen.json", "unknown patients: P9")
    assert not (tmp_path / "none").exists()


def test_slices_without_lesion_are_added_to_those_with_it(release, tmp_path):
    """Each patient has four slices with tumor and six with brain only. A share of 0.5 adds four of these."""
    split = tmp_path / "split.json"
    split.write_text('{"train": ["P0", "P1", "P2"], "test": ["P3", "P4"]}')
    options = ("--split-file", split, "--lesion-free")
    output = convert_2018(release, tmp_path / "half", *options, 0.5, "--test-slices", "tumor")
    train, test = (ArchiveReader(tmp_path / "half" / f"{part}.zip") for part in ("train", "test"))
    assert re.search(r"train.zip  none +8\n", output) and re.search(r"test.zip  none +0\n", output), output
    assert "asks for" not in output and train.info.made["options"]["lesion_free"] == 0.5
    drawn = {p: [r.index for r in train.info.slices if r.patient == p] for p in train.info.patients}
    assert list(drawn) == ["P0", "P1"], "of a patient without tumor none is added"
    assert all(len(k) == 8 and k == sorted(k) and {3, 4, 5, 6} < set(k) for k in drawn.values())
    assert drawn["P0"] != drawn["P1"], "other ones of each"
    for i, record in enumerate(train.info.slices):
        contrasts, classes = BRATS.split(train.read_checked(i))
        assert contrasts.any() and classes.any() == (record.index in (3, 4, 5, 6))
    assert {r.index for r in test.info.slices} == {3, 4, 5, 6}

    convert_2018(release, tmp_path / "few", *options, 0.2, "--workers", 2)
    few = [r.index for r in ArchiveReader(tmp_path / "few" / "train.zip").info.slices if r.patient == "P0"]
    assert len(few) == 5 and set(few) < set(drawn["P0"]), "a smaller share is part of a larger one"
    output = convert_2018(release, tmp_path / "most", *options, 0.75)
    assert re.search(r"train.zip  none +12\n", output) and re.search("asks for +2 cases", output), output


def test_grades(release, tmp_path):
    output = convert_2018(release, tmp_path / "x.zip", "--grade", "LGG")
    assert ArchiveReader(tmp_path / "x.zip").info.patients == ["P3", "P4"]
    assert re.search(r"grade is not LGG +3 patients +P0, P1, P2\n", output), output

    convert_2018(release, tmp_path / "classes.zip", "--class-by", "grade")
    reader = ArchiveReader(tmp_path / "classes.zip")
    assert reader.info.label_names == ("HGG", "LGG")
    assert [reader.label(i) for i in range(len(reader))] == [0] * 8 + [1] * 8

    flat = release / "HGG"
    refused(convert_2018(flat, tmp_path / "y.zip", "--grade", "LGG", expected=2), "no case in HGG/LGG", "--grade all")


def test_grades_of_a_flat_folder(release, tmp_path):
    flat = shutil.copytree(release / "HGG", tmp_path / "flat")
    for option in (("--grade", "HGG"), ("--class-by", "grade")):
        refused(convert_2018(flat, tmp_path / "x.zip", *option, expected=2), flat, "flat/HGG")
    convert_2018(flat, tmp_path / "x.zip")
    assert ArchiveReader(tmp_path / "x.zip").info.labels is None


def test_a_split_file_of_all_grades_serves_one(release, tmp_path):
    chosen = tmp_path / "chosen.json"
    chosen.write_text('{"train": ["P0", "P3"], "test": ["P1", "P4"]}')
    convert_2018(release, tmp_path / "out", "--split-file", chosen, "--grade", "HGG")
    assert json.loads((tmp_path / "out" / "split.json").read_text()) == {"train": ["P0"], "test": ["P1"]}
    chosen.write_text('{"train": ["P0", "P3"], "test": ["P4"]}')
    output = convert_2018(release, tmp_path / "x", "--split-file", chosen, "--grade", "HGG", expected=2)
    refused(output, "chosen.json", "leaves test without a patient")


def test_bytes_depend_on_neither_workers_nor_place(release, tmp_path):
    convert_2018(release, tmp_path / "one")
    convert_2018(release, tmp_path / "two", "--workers", 2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_what_is_there_stays_unless_forced(release, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    convert_2018(release, out)
    before = content(out)
    assert before["notes.txt"] == b"mine"
    refused(convert_2018(release, out, expected=2), out / "train.zip", "exists already", "--force")
    (out / "train.zip").unlink()
    refused(convert_2018(release, out, expected=2), out / "test.zip", "exists already")
    convert_2018(release, out, "--force", "--split-seed", 3)
    after = content(out)
    assert sorted(after) == sorted(before) and after["notes.txt"] == b"mine" and after["test.zip"] != before["test.zip"]


def test_one_patient_cannot_be_split(release, tmp_path):
    source = shutil.copytree(release / "HGG" / "P0", tmp_path / "one" / "P0").parent
    refused(convert_2018(source, tmp_path / "out", expected=2), "1 patient (P0)", "ends in .zip")


def test_a_full_disk(release, tmp_path):
    convert_2018(release, tmp_path / "out")
    before = content(tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (50_000, limits[1])
    )  # bytes in a file: writing more fails as on a full disk
    try:
        output = convert_2018(release, tmp_path / "new", expected=2)
        again = convert_2018(release, tmp_path / "out", "--force", expected=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refused(output, tmp_path / "new", ".zip: File too large")
    refused(again, tmp_path / "out", ".zip: File too large")
    assert not content(tmp_path / "new") and content(tmp_path / "out") == before
    convert_2018(release, tmp_path / "new")  # goes on with the cases that were cut before the disk was full
    assert content(tmp_path / "new") == before and not (tmp_path / "new" / ".converting").exists()


def test_cases_that_cannot_be_read_are_left_out_if_asked(tmp_path):
    for n in range(4):
        write_flat(tmp_path / "s", f"Brats18_X_{n}_1", draw(n))
    bad = tmp_path / "s" / "Brats18_X_1_1" / "Brats18_X_1_1_t2.nii.gz"
    break_file(bad)
    (tmp_path / "s" / "Brats18_X_3_1" / "Brats18_X_3_1_seg.nii.gz").unlink()
    assert "is missing" in convert(tmp_path / "s", tmp_path / "x.zip", expected=2)
    output = convert(tmp_path / "s", tmp_path / "x.zip", "--on-error", "skip")
    assert re.search(r"left out: could not be read +2 patients +Brats18_X_1_1, Brats18_X_3_1", output), output
    assert f"left out: {bad}: damaged" in output
    reader = ArchiveReader(tmp_path / "x.zip")
    assert reader.info.patients == ["Brats18_X_0_1", "Brats18_X_2_1"]
    assert reader.info.made["skipped"]["patients"] == {"could not be read": ["Brats18_X_1_1", "Brats18_X_3_1"]}
    assert not list(tmp_path.glob(".*"))
    for n in (0, 2):
        break_file(tmp_path / "s" / f"Brats18_X_{n}_1" / f"Brats18_X_{n}_1_t1.nii.gz")
    output = convert(tmp_path / "s", tmp_path / "y.zip", "--on-error", "skip", expected=2)
    assert "none of the 4 cases for y.zip can be read" in output and not (tmp_path / "y.zip").exists()


def test_a_conversion_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Cases are cut again if they failed, if their files have changed, or if options differ."""
    import slices.convert.conversion

    for n in range(5):
        write_flat(tmp_path / "s", f"Brats18_X_{n}_1", draw(n))
    convert(tmp_path / "s", tmp_path / "whole.zip")
    bad = tmp_path / "s" / "Brats18_X_3_1" / "Brats18_X_3_1_t2.nii.gz"
    good = bad.read_bytes()
    break_file(bad)
    output = convert(tmp_path / "s", tmp_path / "x.zip", expected=2)
    assert re.search(r"3 of 5 cases are kept in .*\.x\.zip\.converting", output), output
    bad.write_bytes(good)

    cut, original = [], slices.convert.conversion.cut_case
    monkeypatch.setattr(
        slices.convert.conversion, "cut_case", lambda case, *rest: cut.append(case.name) or original(case, *rest)
    )
    other = tmp_path / "s" / "Brats18_X_0_1" / "Brats18_X_0_1_seg.nii.gz"
    other.touch()
    output = convert(tmp_path / "s", tmp_path / "x.zip")
    assert cut == ["Brats18_X_0_1", "Brats18_X_3_1", "Brats18_X_4_1"]
    assert "going on: 2 of 5 cases were cut by an earlier call" in output
    assert (tmp_path / "x.zip").read_bytes() == (tmp_path / "whole.zip").read_bytes()
    assert not list(tmp_path.glob(".*"))

    break_file(bad)
    convert(tmp_path / "s", tmp_path / "z.zip", expected=2)
    bad.write_bytes(good)
    cut.clear()
    convert(tmp_path / "s", tmp_path / "z.zip", "--slices", "all")
    assert len(cut) == 5

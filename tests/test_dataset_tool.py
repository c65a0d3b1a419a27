"""dataset_tool.py as a user calls it: what it writes and says, and that bad input ends with one message."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from commands import ROOT
from dataset_tool import PICTURED, main
from drawn import SHAPE, draw_head, turned, write_case, write_nifti
from slices.archive.describe import choose_slices
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.convert.outcome import Outcome, Target
from slices.convert.report import MOST_NOTES, describe_notes
from slices.schema import BRATS, Schema


def call(*arguments):
    """Run the tool in this process; its exit code and all its words."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output.replace("\r", "\n")  # progress bars go back to the start of the line


def convert(source, dest, *arguments, expected=0):
    options = ("--release", 2018, "--resolution", 64, "--workers", 1)
    code, output = call("convert", "--source", source, "--dest", dest, *options, *arguments)
    assert code == expected, output
    return output


def refused(output, *words):
    """One message, without a traceback, that contains the words."""
    errors = re.findall(r"^error: .*", output, re.MULTILINE)
    assert len(errors) == 1 and "Traceback" not in output, output
    assert all(str(word) in errors[0] for word in words), errors[0]


def content(folder):
    """Name -> bytes of the files that a user sees in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Five small patients, two of them low-grade; read only."""
    source = tmp_path_factory.mktemp("data") / "release"
    for n, parent in enumerate(("HGG", "HGG", "HGG", "LGG", "LGG")):
        volumes = draw_head(seed=n)
        volumes["seg"] = np.roll(volumes["seg"], n, axis=0)
        if n == 2:
            volumes["seg"][:] = 0
        write_case(source / parent, f"P{n}", volumes)
    (source / "survival_data.csv").write_text("stray")
    return source


@pytest.fixture
def copy(release, tmp_path):
    """The same patients, to be damaged."""
    return shutil.copytree(release, tmp_path / "release")


# --- convert --------------------------------------------------------------------------------------------------------


def test_one_archive(release, tmp_path):
    output = convert(release, tmp_path / "all.zip")
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
    assert made["skipped"] == {"patients": {"no slice chosen by 'tumor'": ["P2"]}, "slices": {"no tumour": 34}}
    assert str(tmp_path) not in json.dumps(made)
    assert [path.name for path in tmp_path.iterdir()] == ["all.zip"]
    table = (r"all.zip +4 +16\n", "all.zip  ED +16 +132 ", r"by 'tumor' +1 patient +P2\n", "no tumour +34 slices")
    assert all(re.search(line, output) for line in table), output


def test_train_and_test(release, tmp_path):
    convert(release, tmp_path / "new" / "folder", "--test-fraction", 0.4)
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
    output = convert(release, tmp_path / "out", "--split-file", chosen, "--test-slices", "brain")
    assert ArchiveReader(tmp_path / "out" / "train.zip").info.patients == ["P0", "P4"]
    assert len(ArchiveReader(tmp_path / "out" / "test.zip")) == 10
    assert re.search(r"neither side of the split file +2 patients +P2, P3\n", output), output
    written = tmp_path / "out" / "split.json"
    convert(release, tmp_path / "again", "--split-file", written, "--test-slices", "brain")
    made = ArchiveReader(tmp_path / "again" / "train.zip").info.made
    assert made["split"]["train"] == ["P4", "P0"] and made["options"]["split_file"] == "split.json"
    assert (tmp_path / "again" / "split.json").read_bytes() == written.read_bytes()

    chosen.write_text('{"train": ["P4", "P0"], "test": ["P9"]}')
    output = convert(release, tmp_path / "none", "--split-file", chosen, expected=2)
    refused(output, "chosen.json", "unknown patients: P9")
    assert not (tmp_path / "none").exists()


def test_slices_without_lesion_are_added_to_those_with_it(release, tmp_path):
    """Four slices of each patient have tumour, six have brain alone; a share of 0.5 adds four of these."""
    split = tmp_path / "split.json"
    split.write_text('{"train": ["P0", "P1", "P2"], "test": ["P3", "P4"]}')
    options = ("--split-file", split, "--lesion-free")
    output = convert(release, tmp_path / "half", *options, 0.5, "--test-slices", "tumor")
    train, test = (ArchiveReader(tmp_path / "half" / f"{side}.zip") for side in ("train", "test"))
    assert re.search(r"train.zip  none +8\n", output) and re.search(r"test.zip  none +0\n", output), output
    assert "asks for" not in output and train.info.made["options"]["lesion_free"] == 0.5
    drawn = {p: [r.index for r in train.info.slices if r.patient == p] for p in train.info.patients}
    assert list(drawn) == ["P0", "P1"], "of a patient without tumour none is added"
    assert all(len(k) == 8 and k == sorted(k) and {3, 4, 5, 6} < set(k) for k in drawn.values())
    assert drawn["P0"] != drawn["P1"], "other ones of each"
    for i, record in enumerate(train.info.slices):
        contrasts, classes = BRATS.split(train.read_checked(i))
        assert contrasts.any() and classes.any() == (record.index in (3, 4, 5, 6))
    assert {r.index for r in test.info.slices} == {3, 4, 5, 6}

    convert(release, tmp_path / "few", *options, 0.2, "--workers", 2)
    few = [r.index for r in ArchiveReader(tmp_path / "few" / "train.zip").info.slices if r.patient == "P0"]
    assert len(few) == 5 and set(few) < set(drawn["P0"]), "a smaller share is part of a larger one"
    output = convert(release, tmp_path / "most", *options, 0.75)
    assert re.search(r"train.zip  none +12\n", output) and re.search("asks for +2 cases", output), output


def test_grades(release, tmp_path):
    output = convert(release, tmp_path / "x.zip", "--grade", "LGG")
    assert ArchiveReader(tmp_path / "x.zip").info.patients == ["P3", "P4"]
    assert re.search(r"grade is not LGG +3 patients +P0, P1, P2\n", output), output

    convert(release, tmp_path / "classes.zip", "--class-by", "grade")
    reader = ArchiveReader(tmp_path / "classes.zip")
    assert reader.info.label_names == ("HGG", "LGG")
    assert [reader.label(i) for i in range(len(reader))] == [0] * 8 + [1] * 8

    flat = release / "HGG"
    refused(convert(flat, tmp_path / "y.zip", "--grade", "LGG", expected=2), "no case in HGG/LGG", "--grade all")


def test_grades_of_a_flat_folder(release, tmp_path):
    flat = shutil.copytree(release / "HGG", tmp_path / "flat")
    for option in (("--grade", "HGG"), ("--class-by", "grade")):
        refused(convert(flat, tmp_path / "x.zip", *option, expected=2), flat, "flat/HGG")
    convert(flat, tmp_path / "x.zip")
    assert ArchiveReader(tmp_path / "x.zip").info.labels is None


def test_a_split_file_of_all_grades_serves_one(release, tmp_path):
    chosen = tmp_path / "chosen.json"
    chosen.write_text('{"train": ["P0", "P3"], "test": ["P1", "P4"]}')
    convert(release, tmp_path / "out", "--split-file", chosen, "--grade", "HGG")
    assert json.loads((tmp_path / "out" / "split.json").read_text()) == {"train": ["P0"], "test": ["P1"]}
    chosen.write_text('{"train": ["P0", "P3"], "test": ["P4"]}')
    output = convert(release, tmp_path / "x", "--split-file", chosen, "--grade", "HGG", expected=2)
    refused(output, "chosen.json", "leaves test without a patient")


def test_bytes_depend_on_neither_workers_nor_place(release, tmp_path):
    convert(release, tmp_path / "one")
    convert(release, tmp_path / "two", "--workers", 2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_what_is_there_stays_unless_forced(release, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    convert(release, out)
    before = content(out)
    assert before["notes.txt"] == b"mine"
    refused(convert(release, out, expected=2), out / "train.zip", "exists already", "--force")
    (out / "train.zip").unlink()
    refused(convert(release, out, expected=2), out / "test.zip", "exists already")
    convert(release, out, "--force", "--split-seed", 3)
    after = content(out)
    assert sorted(after) == sorted(before) and after["notes.txt"] == b"mine" and after["test.zip"] != before["test.zip"]


def test_oddities_end_up_in_the_table(copy, tmp_path):
    for name in ("P0", "P1"):
        write_nifti(copy / "HGG" / name / f"{name}_seg.nii.gz", draw_head()["seg"], np.diag((-1.0, -1, 1, 1)))
    output = convert(copy, tmp_path / "x.zip")
    assert re.search(
        r"note: P0_seg.nii.gz: its header knows no place .* \(the first of 2\) +2 cases +P0, P1\n", output
    ), output
    remarks = ArchiveReader(tmp_path / "x.zip").info.made["remarks"]
    assert [cases for remark, cases in remarks.items() if "knows no place" in remark] == [["P0"], ["P1"]]
    assert "the release's volumes have 240×240×155 voxels, these don't: is it another one?" in remarks


def test_lost_lesions_are_told_with_their_share(tmp_path):
    edge, away = draw_head(), draw_head()
    away["seg"][:] = 0
    away["seg"][10:20, 2:6, 4] = 2  # cut off, and outside the head
    edge["seg"][0:8, 20:30, 3:7] = 2  # 320 of 992 voxels outside the head
    for name, drawn in (("edge", edge), ("away", away)):
        write_case(tmp_path / "source", name, drawn)
    options = ("--release", "2018", "--resolution", 32)
    out = convert(tmp_path / "source", tmp_path / "fov.zip", *options, "--fov", 46)
    assert "lesion voxels outside the field of view" in out and "edge 28.2 %" in out and "away 100 %" in out
    assert re.search(r"left out: the whole lesion lies outside the field of view +1 patient +away", out)
    out = convert(tmp_path / "source", tmp_path / "whole.zip", *options)
    assert re.search(r"lesion voxels outside the head +2 cases, 360 voxels, 66.1 % on average", out)
    made = ArchiveReader(tmp_path / "whole.zip").info.made
    assert made["lost"] == {"lesion voxels outside the head": {"away": 1.0, "edge": 0.3226}}
    assert made["remarks"]["lesion voxels outside the head"] == ["away", "edge"] and "head" not in made["options"]
    masked = convert(tmp_path / "source", tmp_path / "all.zip", *options, "--head", "all")
    assert "outside the head" not in masked
    assert ArchiveReader(tmp_path / "all.zip").info.made["options"]["head"] == "all"
    refused(convert(tmp_path / "source", tmp_path / "x.zip", *options, "--head", "skull", expected=2), "--head skull")
    (tmp_path / "alone").mkdir()
    shutil.move(tmp_path / "source" / "away", tmp_path / "alone")
    refused(
        convert(tmp_path / "alone", tmp_path / "x.zip", *options, "--fov", 46, expected=2),
        "--fov 46",
        "choose --slices all, a larger --fov, or",
    )


def outcome_with(remarks):
    """Of an archive without slices."""
    target = Target(None, Path("x.zip"), "all", None, (), left_out={}, remarks=remarks, known={})
    return Outcome(target, BRATS, records={}, errors={})


def test_only_so_many_notes_are_shown():
    remarks = {f"{'odd ' * n}": [f"case{n}"] for n in range(1, MOST_NOTES + 8)}
    table = describe_notes([outcome_with(remarks)])
    assert table.count("note: ") == MOST_NOTES and "and 7 notes more, which `inspect` lists" in table


def test_notes_that_differ_in_names_and_numbers_are_one():
    """However many files are odd in one way, what is odd in another isn't lost among them."""
    outcomes = []
    for cases in (range(60), range(60, 100)):
        remarks = {f"q{n}_t1.nii.gz: {n + 7} voxels of NaN at 0.{n} mm": [f"q{n}"] for n in cases}
        remarks |= {
            "all files: no orientation": [f"q{n}" for n in cases],
            f"q{cases[0]}_seg.nii.gz: odd": [f"q{cases[0]}"],
        }
        outcomes.append(outcome_with(remarks))
    table = describe_notes(outcomes).splitlines()[2:]
    assert [re.sub(" {2,}", "|", line) for line in table] == [
        "note: q0_t1.nii.gz: 7 voxels of NaN at 0.0 mm (the first of 100)|100 cases|q0, q1, q2, …",
        "note: all files: no orientation|100 cases|q0, q1, q2, …",
        "note: q0_seg.nii.gz: odd (the first of 2)|2 cases|q0, q60",
    ]


# --- bad input ------------------------------------------------------------------------------------------------------


def _truncate(path):
    path.write_bytes(path.read_bytes()[:3000])


def _put(path, value, dtype):
    volume = draw_head()["seg"].astype(dtype)
    volume[5, 5, 5] = value
    write_nifti(path, *turned(volume, "LPS"))


DAMAGE = {
    "missing": ("P1_t2.nii.gz", Path.unlink, "is missing; the case P1 consists of"),
    "shape": (
        "P1_t2.nii.gz",
        lambda p: write_nifti(p, np.ones((60, 60, 9), np.int16)),
        "60×60×9 voxels, but P1_t1.nii",
    ),
    "label": ("P1_seg.nii.gz", lambda p: _put(p, 3, np.uint8), "unknown label value 3; expected 0 and 1, 2, 4"),
    "fraction": ("P1_seg.nii.gz", lambda p: _put(p, 0.5, np.float32), "this one has 0.5"),
    "infinite": ("P1_flair.nii.gz", lambda p: _put(p, np.inf, np.float32), "infinite, or beyond float32, in 1 voxel"),
    "truncated": ("P1_t1ce.nii.gz", _truncate, "damaged or incomplete"),
    "empty": ("P1_t1.nii.gz", lambda p: p.write_bytes(b""), "empty"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_files(copy, tmp_path, damage):
    name, spoil, words = DAMAGE[damage]
    spoil(copy / "HGG" / "P1" / name)
    refused(convert(copy, tmp_path / "out", expected=2), copy / "HGG" / "P1" / name, words)
    refused(convert(copy, tmp_path / "x.zip", expected=2), copy / "HGG" / "P1" / name, words)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and "release" not in path.parts]
    assert all(path.parent.name.endswith(".converting") for path in left)  # the cases that could be read


def test_bad_files_in_workers_spoil_nothing_that_was_there(copy, release, tmp_path):
    convert(release, tmp_path / "out")
    before = content(tmp_path / "out")
    _truncate(copy / "LGG" / "P3" / "P3_t2.nii.gz")
    output = convert(copy, tmp_path / "out", "--force", "--workers", 2, expected=2)
    refused(output, copy / "LGG" / "P3" / "P3_t2.nii.gz", "damaged or incomplete")
    assert content(tmp_path / "out") == before
    assert re.search(r"[1-4] of 5 cases are kept in .*the same command goes on", output), output


def test_sources_without_cases(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(
        convert(tmp_path / "empty", tmp_path / "x.zip", expected=2),
        "no cases found of BraTS 2018; expected",
        "t1, t1ce, t2, flair, seg",
    )
    refused(convert(tmp_path / "none", tmp_path / "x.zip", expected=2), tmp_path / "none", "no such folder")


@pytest.mark.parametrize(
    "options, words",
    [
        (("--resolution", 100), "power of two"),
        (("--fov", 32.0), "choose --fov 64 or more, or --resolution 32 or less"),
        (("--min-tumor-pixels", 100_000), "choose --slices all"),
        (("--test-fraction", 1.5), "between 0 and 1"),
        (("--split-file", "x.json", "--split-seed", 1), "--split-seed draws a split"),
        (("--split-file", "nowhere.json"), "nowhere.json: no such file; expected a split"),
        (("--lesion-free", 1.0), "--lesion-free 1: expected a share between 0 and 1"),
        (("--lesion-free", 0.2, "--slices", "all"), "but --slices all takes others as well"),
    ],
)
def test_bad_options(release, tmp_path, options, words):
    refused(convert(release, tmp_path / "out", *options, expected=2), words)
    assert not (tmp_path / "out").exists()


def test_options_of_a_split_need_a_folder(release, tmp_path):
    output = convert(release, tmp_path / "x.zip", "--test-slices", "all", expected=2)
    refused(output, "--test-slices needs a folder as --dest", "x.zip is a single archive")


def test_one_patient_cannot_be_split(release, tmp_path):
    source = shutil.copytree(release / "HGG" / "P0", tmp_path / "one" / "P0").parent
    refused(convert(source, tmp_path / "out", expected=2), "1 patient (P0)", "ends in .zip")


def test_destinations_that_cannot_be_written(release, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.zip").mkdir()
    for dest in (tmp_path / "file", tmp_path / "file" / "out", tmp_path / "file" / "x.zip"):
        refused(convert(release, dest, expected=2), tmp_path / "file")
    refused(convert(release, tmp_path / "folder.zip", "--force", expected=2), tmp_path / "folder.zip", "is a folder")
    refused(convert(release, Path("/proc/none/x.zip"), expected=2), "/proc/none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.zip"]


def test_a_full_disk(release, tmp_path):
    convert(release, tmp_path / "out")
    before = content(tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (50_000, limits[1])
    )  # bytes in a file: writing more fails as on a full disk
    try:
        output = convert(release, tmp_path / "new", expected=2)
        again = convert(release, tmp_path / "out", "--force", expected=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refused(output, tmp_path / "new", ".zip: File too large")
    refused(again, tmp_path / "out", ".zip: File too large")
    assert not content(tmp_path / "new") and content(tmp_path / "out") == before
    convert(release, tmp_path / "new")  # goes on with the cases that were cut before the disk was full
    assert content(tmp_path / "new") == before and not (tmp_path / "new" / ".converting").exists()


KEPT = "all-0123456789abcdef01234567.zip"  # as a cut case is called


@pytest.mark.parametrize("how", ["link", "dangling link", "own files", "named alike", "own job.json", "link in it"])
def test_a_folder_of_cut_cases_that_is_none_is_left_alone(release, tmp_path, how):
    """What lies under the hidden name, or behind a link of that name, and no conversion put there."""
    mine, place = tmp_path / "mine", tmp_path / "out" / ".converting"
    for folder in (mine, place.parent):
        folder.mkdir()
    for name in (KEPT, "notes.txt"):
        (mine / name).write_text("mine")
    if "link" in how and how != "link in it":
        place.symlink_to("none" if how == "dangling link" else mine)
    else:
        place.mkdir()
        if how == "link in it":
            (place / KEPT).symlink_to(mine / KEPT)
        else:
            (
                place / {"own files": "notes.txt", "named alike": "all-x.zip", "own job.json": "job.json"}[how]
            ).write_text("[]")
    before = sorted((path, path.is_file() and path.read_bytes()) for path in tmp_path.rglob("*"))
    refused(convert(release, tmp_path / "out", expected=2), place)
    assert sorted((path, path.is_file() and path.read_bytes()) for path in tmp_path.rglob("*")) == before


def test_a_conversion_killed_at_its_end_leaves_nothing(release, tmp_path, monkeypatch):
    """All archives are there, and the cut cases as well: the same command refuses to replace them, and tidies up."""
    with monkeypatch.context() as killed:
        killed.setattr("slices.convert.cut_cases.Workplace.remove", lambda self: None)
        convert(release, tmp_path / "x.zip")
    assert len(list((tmp_path / ".x.zip.converting").iterdir())) == 6
    refused(convert(release, tmp_path / "x.zip", expected=2), "x.zip exists already")
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_cut_cases_of_another_state_of_the_program_are_cut_again(release, tmp_path, monkeypatch):
    """31 of 96 slices had wrong labels where a changed program went on with what it found."""
    (tmp_path / "split.json").write_text('{"train": ["P0", "P1", "P2", "P3"], "test": ["P4"]}')
    given = ("--split-file", tmp_path / "split.json")
    broken = shutil.copytree(release, tmp_path / "broken")
    _truncate(broken / "LGG" / "P4" / "P4_t2.nii.gz")
    went_on = "going on: 4 of 5 cases were cut by an earlier call"
    for sources, expected in (("a", False), ("a", True), ("b", False)):
        monkeypatch.setattr("slices.convert.conversion.sources_sha256", lambda *names, sources=sources: sources)
        assert (went_on in convert(broken, tmp_path / "out", *given, expected=2)) == expected, sources
    file = broken / "HGG" / "P0" / "P0_t1.nii.gz"
    state = file.stat()
    shutil.copy(broken / "HGG" / "P1" / "P1_t1.nii.gz", file)
    file.write_bytes(file.read_bytes()[: state.st_size].ljust(state.st_size, b"\0"))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # another file of the same size and date
    assert "going on: 3 of 5" in convert(broken, tmp_path / "out", *given, expected=2)


def test_ctrl_c(release, tmp_path):
    for n in range(400):
        case = tmp_path / "many" / f"C{n:03d}"
        case.mkdir(parents=True)
        for file in (release / "HGG" / "P0").iterdir():
            (case / file.name.replace("P0", case.name)).symlink_to(file)
    command = [
        sys.executable,
        "dataset_tool.py",
        "convert",
        "--source",
        tmp_path / "many",
        "--dest",
        tmp_path / "out",
        "--release",
        "2018",
    ]
    process = subprocess.Popen(
        [*command, "--workers", "2"], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    words = b""
    while not re.search(rb"[1-9]\d/400", words):
        words += (chunk := os.read(process.stderr.fileno(), 4096))
        assert chunk, words.decode()
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all processes
    words += b"".join(process.communicate(timeout=30))
    assert time.monotonic() - started < 10
    assert process.returncode == 1 and b"Aborted!" in words and b"Traceback" not in words, words.decode()
    assert not content(tmp_path / "out") and b"the same command goes on from there" in words
    kept = len(list((tmp_path / "out" / ".converting").glob("*.zip")))
    assert 10 <= kept < 400


# --- inspect --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(release, tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "x.zip"
    convert(release, path, "--class-by", "grade", "--slices", "brain")
    return path


def test_inspect(archive, tmp_path):
    code, output = call("inspect", archive, "--out", tmp_path / "panel.png")
    assert code == 0
    for words in (
        "50 slices of 64×64 pixels, 4 contrasts and 4 label maps; all are readable",
        "contrasts: t1, t1ce, t2, flair",
        "class NCR: necrosis / non-enhancing, value 1 in NIfTI files",
        "region WT: NCR + ED + ET",
        "class labels: HGG 30 slices, LGG 20 slices",
        "made by: dataset_tool.py convert, version ",
        "  slices: brain",
    ):
        assert words in output
    reader = ArchiveReader(archive)
    maps = np.stack([reader.read(i)[5:] for i in range(50)]) == 255  # [N, class, H, W]
    for name, areas in zip(("NCR", "ED", "ET"), maps.sum(axis=(2, 3)).T, strict=True):
        share = 100 * areas.sum() / (50 * 64 * 64)
        row = rf"x.zip  {name} +{(areas > 0).sum()} +{areas[areas > 0].mean():.0f} +{share:.3f} %\n"
        assert re.search(row, output), (row, output)
    assert re.search(r"x.zip +5 +50\n", output)
    assert Image.open(tmp_path / "panel.png").size[0] > 4 * 64


def test_inspect_a_split(release, tmp_path):
    convert(release, tmp_path / "out")
    code, output = call("inspect", tmp_path / "out" / "test.zip")
    assert code == 0 and "split: this is test of 4 train, 1 test patients" in output


def test_inspect_generated_slices(tmp_path):
    schema = Schema(("t1", "t2"))
    with ArchiveWriter(tmp_path / "fake.zip", schema, 16, {"command": "generate.py"}, pixel=(1.5, 2.0)) as writer:
        for seed in range(100, 103):
            writer.add(np.full((2, 16, 16), 9, np.uint8), patient=f"s{seed}", seed=seed, snapshot="beef")
    code, output = call("inspect", tmp_path / "fake.zip", "--out", tmp_path / "x.png")
    assert code == 0, output
    assert "generated: 3 slices, seeds 100 to 102, snapshot beef" in output
    assert "1.5 to 2 mm pixels, 32 mm across" in output
    assert "2 contrasts and 0 label maps" in output and "made by: generate.py, version unknown" in output


def test_inspect_what_is_no_archive(archive, tmp_path):
    (tmp_path / "cut.zip").write_bytes(archive.read_bytes()[:-1000])
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("dataset.json", '{"labels": null}')
    (tmp_path / "text.zip").write_text("text")
    for name, words in (
        ("cut.zip", "not a complete zip"),
        ("other.zip", "does not describe joint slices"),
        ("text.zip", "not a complete zip"),
        ("none.zip", "no such file"),
        ("", "is a folder"),
    ):
        code, output = call("inspect", tmp_path / name)
        assert code == 2
        refused(output, tmp_path / name, words)


def test_inspect_refuses_pictures_it_cannot_write(archive, tmp_path):
    (tmp_path / "x.png").write_text("mine")
    for name, words in (
        ("x.png", "exists already"),
        ("x.tiff", "ends in .png"),
        ("x.png/y.png", "a file is where a folder is needed"),
    ):
        code, output = call("inspect", archive, "--out", tmp_path / name)
        assert code == 2
        refused(output, tmp_path / name.removesuffix("/y.png"), words)
    assert (tmp_path / "x.png").read_text() == "mine"
    assert call("inspect", archive, "--out", tmp_path / "x.png", "--force")[0] == 0


def test_pictured_slices_have_large_lesions_of_many_patients():
    by_patient = {f"p{p}": list(range(10 * p, 10 * p + 10)) for p in range(20)}
    sizes = [(i % 10, 0) for i in range(200)]  # the last slice of each patient is the largest
    many = choose_slices(by_patient, sizes, PICTURED)
    assert len({i // 10 for i in many}) == PICTURED and all(i % 10 == 9 for i in many)
    few = choose_slices({"p0": list(range(10)), "p1": list(range(10, 20))}, sizes, 4)
    assert [i // 10 for i in few] == [0, 0, 1, 1] and all(i % 10 >= 5 for i in few) and len(set(few)) == 4
    assert choose_slices({"p0": [0, 1]}, sizes, 8) == [1, 0]


# --- phantom --------------------------------------------------------------------------------------------------------


def test_phantom_passes_its_options_on(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("dataset_tool.write_patients", lambda *arguments: calls.append(arguments))
    code, output = call(
        "phantom", "--dest", tmp_path, "--patients", 3, "--seed", 7, "--shape", "48x48x31", "--workers", 1
    )
    assert code == 0, output
    assert calls == [(tmp_path, 3, 7, (48, 48, 31), 1, False)]


@pytest.mark.parametrize("shape", ["48", "48x48", "48x48x-3", "axbxc", "48x48x31x2"])
def test_phantom_shapes(tmp_path, shape):
    code, output = call("phantom", "--dest", tmp_path, "--patients", 1, "--seed", 0, "--shape", shape)
    assert code == 2 and "expected three whole numbers such as 240x240x155" in output


# --- the tool as such -----------------------------------------------------------------------------------------------


def test_torch_is_not_imported():
    code = "import sys, dataset_tool, slices.phantom, slices.render; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("command", ["convert", "phantom", "inspect"])
def test_help_describes_every_option(command):
    code, output = call(command, "--help")
    assert code == 0
    for parameter in main.commands[command].params:
        assert isinstance(parameter, click.Argument) or (parameter.help and parameter.opts[0] in output), parameter.name

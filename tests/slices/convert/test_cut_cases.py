"""Cut cases on disk: which are used again, which are cut again, and which folders are refused."""

import os
import shutil

import numpy as np
import pytest

from dnnlib.errors import UserError
from helpers.commands import convert, convert_2018, refused
from helpers.layouts import (
    break_file,
    draw,
    truncate,
    write_flat,
)
from slices.archive.reader import ArchiveReader
from slices.convert.cut_cases import Workplace

KEPT = "all-0123456789abcdef01234567.zip"  # a name as of a cut case


@pytest.mark.parametrize("how", ["link", "dangling link", "own files", "named alike", "own job.json", "link in it"])
def test_a_folder_of_cut_cases_that_is_none_is_left_alone(release, tmp_path, how):
    """Files that no conversion made, in the hidden folder or behind a link of its name, are left alone."""
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
    refused(convert_2018(release, tmp_path / "out", expected=2), place)
    assert sorted((path, path.is_file() and path.read_bytes()) for path in tmp_path.rglob("*")) == before


def test_a_conversion_killed_at_its_end_leaves_nothing(release, tmp_path, monkeypatch):
    """All archives and the cut cases exist: the same command refuses to replace the archives, and tidies up."""
    with monkeypatch.context() as killed:
        killed.setattr("slices.convert.cut_cases.Workplace.remove", lambda self: None)
        convert_2018(release, tmp_path / "x.zip")
    assert len(list((tmp_path / ".x.zip.converting").iterdir())) == 6
    refused(convert_2018(release, tmp_path / "x.zip", expected=2), "x.zip exists already")
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_cut_cases_of_another_state_of_the_program_are_cut_again(release, tmp_path, monkeypatch):
    """A changed program must not use old cut cases: once this gave wrong labels in 31 of 96 slices."""
    (tmp_path / "split.json").write_text('{"train": ["P0", "P1", "P2", "P3"], "test": ["P4"]}')
    given = ("--split-file", tmp_path / "split.json")
    broken = shutil.copytree(release, tmp_path / "broken")
    truncate(broken / "LGG" / "P4" / "P4_t2.nii.gz")
    went_on = "going on: 4 of 5 cases were cut by an earlier call"
    for sources, expected in (("a", False), ("a", True), ("b", False)):
        monkeypatch.setattr("slices.convert.conversion.sources_sha256", lambda *names, sources=sources: sources)
        assert (went_on in convert_2018(broken, tmp_path / "out", *given, expected=2)) == expected, sources
    file = broken / "HGG" / "P0" / "P0_t1.nii.gz"
    state = file.stat()
    shutil.copy(broken / "HGG" / "P1" / "P1_t1.nii.gz", file)
    file.write_bytes(file.read_bytes()[: state.st_size].ljust(state.st_size, b"\0"))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # another file of the same size and date
    assert "going on: 3 of 5" in convert_2018(broken, tmp_path / "out", *given, expected=2)


def test_cases_cut_from_another_source_are_not_taken_for_this_one(tmp_path):
    """Files in another folder are other patients, even with the same names, sizes and dates."""
    for source, seed in (("s1", 0), ("s2", 5)):
        for n in range(3):
            write_flat(tmp_path / source, f"Brats18_X_{n}_1", draw(seed + n), suffix=".nii")
        for path in (tmp_path / source).rglob("*.nii"):
            os.utime(path, (0, 0))
    bad = tmp_path / "s1" / "Brats18_X_2_1" / "Brats18_X_2_1_t1.nii"
    break_file(bad)
    assert "2 of 3 cases are kept" in convert(tmp_path / "s1", tmp_path / "x.zip", expected=2)
    assert "going on" not in convert(tmp_path / "s2", tmp_path / "x.zip")
    convert(tmp_path / "s2", tmp_path / "fresh.zip")
    a, b = ArchiveReader(tmp_path / "x.zip"), ArchiveReader(tmp_path / "fresh.zip")
    assert a.info.slices == b.info.slices and all(np.array_equal(a.read(i), b.read(i)) for i in range(len(a)))


def test_two_conversions_to_one_place(tmp_path):
    """A second workplace is refused while the first holds the folder, and works afterwards."""
    with Workplace(tmp_path / "w", {"a": 1}) as first:
        with pytest.raises(UserError, match="another conversion to this place is running"):
            Workplace(tmp_path / "w", {"a": 1}).__enter__()
        first.remove()
        with Workplace(tmp_path / "w", {"a": 1}) as second:  # in a new folder of that name
            first.remove()  # this folder no longer belongs to the first
            assert (tmp_path / "w" / "job.json").exists()
            (tmp_path / "w" / "x.zip").write_text("cut")
    assert second.folder.exists()


def test_names_that_differ_in_capitals_only_or_are_long(tmp_path):
    for name in ("Brats18_a_1", "Brats18_A_1", "Brats18_" + "x" * 220):
        write_flat(tmp_path / "s", name, draw(len(name)))
    convert(tmp_path / "s", tmp_path / "x.zip")
    assert len(ArchiveReader(tmp_path / "x.zip").info.patients) == 3

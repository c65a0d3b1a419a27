"""What convert prints: tables of what was left out and of what was odd."""

import re
import shutil
from pathlib import Path

import numpy as np

from helpers.commands import convert, convert_2018, refused
from helpers.drawn import draw_head, write_case, write_nifti
from helpers.layouts import draw, write_flat
from slices.archive.reader import ArchiveReader
from slices.convert.outcome import Outcome, PlannedArchive
from slices.convert.report import MOST_NOTES, describe_notes
from slices.schema import BRATS


def test_oddities_end_up_in_the_table(copy, tmp_path):
    for name in ("P0", "P1"):
        write_nifti(copy / "HGG" / name / f"{name}_seg.nii.gz", draw_head()["seg"], np.diag((-1.0, -1, 1, 1)))
    output = convert_2018(copy, tmp_path / "x.zip")
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
    """The outcome of an archive without slices. remarks: remark -> cases, as in PlannedArchive."""
    archive = PlannedArchive(None, Path("x.zip"), "all", None, (), left_out={}, remarks=remarks, known={})
    return Outcome(archive, BRATS, records={}, errors={})


def test_only_so_many_notes_are_shown():
    remarks = {f"{'odd ' * n}": [f"case{n}"] for n in range(1, MOST_NOTES + 8)}
    table = describe_notes([outcome_with(remarks)])
    assert table.count("note: ") == MOST_NOTES and "and 7 notes more, which `inspect` lists" in table


def test_notes_that_differ_in_names_and_numbers_are_one():
    """Many files with the same oddity don't hide another one."""
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


def test_lesions_that_are_no_tumors_are_not_called_so(tmp_path):
    write_flat(tmp_path / "s", "a", draw())
    described = ("--contrasts", "t1", "--labels", "plaque=1+2+4", "--pattern", "{case}/{case}_{contrast}.nii.gz")
    output = convert(tmp_path / "s", tmp_path / "x.zip", *described)
    assert "left out: no lesion" in output and "tumo" not in output.partition("written:")[0]
    output = convert(tmp_path / "s", tmp_path / "y.zip", *described, "--min-tumor-pixels", 4000, expected=2)
    assert "not even the only case for y.zip has a slice with a lesion of 4000 or more pixels" in output

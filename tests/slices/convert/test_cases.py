"""Cases: grouping of files, patients, and tables that name the patients."""

import os

import numpy as np
import pytest

from dnnlib.errors import UserError
from helpers.cases import BRATS_2018, read_only_case
from helpers.commands import convert
from helpers.drawn import draw_slice, write_case, write_nifti
from helpers.layouts import draw, flat, own, put, touch, write_flat
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.convert.recognition import find_cases
from slices.schema import BRATS


def test_cases_of_graded_and_flat_folders(tmp_path):
    for parent, name in (("HGG", "B_x_1"), ("LGG", "A[1]"), ("", "C")):
        write_case(tmp_path / parent, name)
    (tmp_path / "survival_data.csv").write_text("stray")
    (tmp_path / "HGG" / "notes.txt").write_text("stray")
    (tmp_path / "templates").mkdir()
    write_nifti(tmp_path / "templates" / "atlas.nii.gz", np.zeros((2, 2, 2), np.uint8))
    write_nifti(tmp_path / "LGG" / "LGG_mean.nii.gz", np.zeros((2, 2, 2), np.uint8))
    (tmp_path / "HGG" / ".hidden").mkdir()
    cases = find_cases(tmp_path, BRATS_2018).cases
    assert [(c.name, c.patient, c.grade) for c in cases] == [
        ("A[1]", "A[1]", "LGG"),
        ("B_x_1", "B_x_1", "HGG"),
        ("C", "C", None),
    ]
    assert [c.grade for c in find_cases(tmp_path / "HGG", BRATS_2018).cases] == ["HGG"]
    assert [path.name for path in cases[2].paths] == [f"C_{kind}.nii.gz" for kind in (*BRATS.contrasts, "seg")]


def test_no_cases(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/none: no such folder"):
        find_cases(tmp_path / "none", BRATS_2018)
    (tmp_path / "HGG" / "case").mkdir(parents=True)
    with pytest.raises(UserError, match="no cases found of BraTS 2018; expected in it {grade}/{case}/.*, flair, seg"):
        find_cases(tmp_path, BRATS_2018)


def test_two_cases_of_one_name(tmp_path):
    write_case(tmp_path / "HGG", "a")
    write_case(tmp_path / "LGG", "a")
    with pytest.raises(UserError, match="HGG/a/a_….nii.gz and LGG/a/a_….nii.gz have one name"):
        find_cases(tmp_path, BRATS_2018)


def test_a_missing_file(tmp_path):
    (write_case(tmp_path) / "case1_t2.nii.gz").unlink()
    with pytest.raises(
        UserError, match=r"case1/case1_t2.nii.gz is missing; the case case1 consists of case1_t1.nii.gz, .*seg"
    ):
        read_only_case(tmp_path)


def test_a_link_to_nowhere(tmp_path):
    path = write_case(tmp_path) / "case1_t2.nii.gz"
    path.unlink()
    path.symlink_to("../.git/annex/objects/Xk/99/MD5E-s77--0.nii.gz")
    with pytest.raises(UserError, match=r"case1_t2.nii.gz: a link to .*, which is not there: datalad get"):
        read_only_case(tmp_path)


def test_the_ending_that_users_write_tells_two_files_of_one_name(tmp_path):
    files = touch(tmp_path, "img/a.nii", "img/a.nii.gz", "lab/a.nii", "lab/a.nii.gz")
    for images, masks in ((".nii", ".nii.gz"), (".nii.gz", ".nii")):
        release = own(f"img/{{case}}{images}", labels="x=1", masks=f"lab/{{case}}{masks}")
        found = find_cases(files, release)
        assert [path.name for path in found.cases[0].paths] == [f"a{images}", f"a{masks}"]
        assert "2 NIfTI files fit no pattern" in found.words


@pytest.mark.parametrize("twin", ["imagesTr/BRATS_007.nii", "labelsTr/BRATS_007.nii"])
def test_two_files_of_one_name_in_a_release_are_refused(tmp_path, twin):
    touch(tmp_path, "imagesTr/BRATS_007.nii.gz", "labelsTr/BRATS_007.nii.gz", twin)
    with pytest.raises(UserError, match=f"{twin} and {twin}.gz may both be the same file of the case BRATS_007"):
        find_cases(tmp_path)


def test_two_scans_of_one_contrast_are_refused(tmp_path):
    touch(tmp_path, "a/run1_t1.nii", "a/run2_t1.nii")
    with pytest.raises(UserError, match="a/run1_t1.nii and a/run2_t1.nii may both be the same file of the case a"):
        find_cases(tmp_path, own("{case}/*_{contrast}.nii"))
    touch(tmp_path / "s", "x/a_t1.nii", "y/a_t2.nii")  # two incomplete patients must not become one
    with pytest.raises(UserError, match="have one name"):
        find_cases(tmp_path / "s", own("*/{case}_{contrast}.nii", "t1,t2"))


def test_the_odd_mask_never_wins_over_a_proper_one(tmp_path):
    touch(tmp_path, *flat("BraTS20_Training_355", ending=".nii"), "BraTS20_Training_355/W39_1998.09.19_Segm.nii")
    found = find_cases(tmp_path)
    assert found.cases[0].mask.name == "BraTS20_Training_355_seg.nii"
    assert "1 NIfTI file fits no pattern, such as BraTS20_Training_355/W39_1998.09.19_Segm.nii" in found.words


def test_links_that_lead_to_themselves(tmp_path):
    write_flat(tmp_path / "s", "Brats18_X_1_1", draw())
    (tmp_path / "s" / "Brats18_X_1_1" / "Brats18_X_1_1_t2.nii.gz").unlink()
    os.symlink("Brats18_X_1_1_t2.nii.gz", tmp_path / "s" / "Brats18_X_1_1" / "Brats18_X_1_1_t2.nii.gz")
    output = convert(tmp_path / "s", tmp_path / "x.zip", expected=2)
    assert "Brats18_X_1_1_t2.nii.gz: a link to" in output and os.listdir(tmp_path) == ["s"]


def test_masks_that_nobody_asked_for_are_of_their_case(tmp_path):
    touch(tmp_path, "a_t1.nii", "a_seg.nii", "b_seg.nii", "c.nii")
    assert (
        "; 2 NIfTI files fit no pattern, such as b_seg.nii" in find_cases(tmp_path, own("{case}_{contrast}.nii")).words
    )


def test_a_mask_that_is_named_like_an_image_is_none(tmp_path):
    touch(tmp_path, "a.nii", "a_lesion.nii", "b.nii", "b_lesion.nii")
    found = find_cases(tmp_path, own("{case}.nii", labels="x=1", masks="{case}_lesion.nii"))
    assert [case.mask.name for case in found.cases] == ["a_lesion.nii", "b_lesion.nii"]


def write_table(path, *rows, encoding="utf-8"):
    path.write_text("\n".join(rows) + "\n", encoding=encoding)
    return path


def test_a_table_keeps_a_patient_on_one_side_and_tells_grades(tmp_path):
    """Names say nothing here: k0, k2, k4 belong to one patient, k1, k3, k5 to another, and k6 to a third."""
    for n in range(7):
        write_flat(tmp_path / "s", f"k{n}", draw(n))
    patients = ["odd" if n % 2 else "even" for n in range(6)] + ["alone"]
    rows = [f"k{n};{patient};{n};{'LGG' if patient == 'odd' else 'HGG'}" for n, patient in enumerate(patients)]
    table = write_table(tmp_path / "who.csv", "Case;Patient;Visit;Grade", *rows, encoding="utf-8-sig")
    described = ("--contrasts", "t1", "--labels", "core=1+4,edema=2", "--pattern", "{case}/{case}_{contrast}.nii.gz")
    for seed in range(3):
        output = convert(
            tmp_path / "s",
            tmp_path / "out",
            *described,
            "--cases",
            table,
            "--test-fraction",
            0.4,
            "--split-seed",
            seed,
            "--class-by",
            "grade",
            "--force",
        )
        assert "your data, told by who.csv: 7 cases of 3 patients" in output
        train, test = (ArchiveReader(tmp_path / "out" / f"{part}.zip") for part in ("train", "test"))
        assert not set(train.info.patients) & set(test.info.patients)
        assert {*train.info.patients, *test.info.patients} == set(patients)
        assert len(train.info.volumes) + len(test.info.volumes) == 7
        for i, record in enumerate(train.info.slices):
            assert record.patient == patients[int(record.volume[1:])]
            assert train.label(i) == (record.patient == "odd")
        assert train.info.made["options"]["cases"] == "who.csv"
    convert(tmp_path / "s", tmp_path / "x.zip", *described, "--cases", table, "--grade", "LGG")
    assert ArchiveReader(tmp_path / "x.zip").info.patients == ["odd"]


@pytest.mark.parametrize(
    "rows, words",
    [
        (["case,patient", "a,p"], "has no row for 1 case, b; expected one row for every case"),
        (["case,patient", "a,p", "b,p", "c,p"], "the source doesn't have 1 case, c"),
        (["case,patient", "a,p", "A,p"], "no row for 1 case, b; the source doesn't have 1 case, A"),
        (["case,patient,age", "a,p,3", "b,p,4"], "expected the columns case and one or more of .*'age'"),
        (["case", "a", "b"], "expected the columns case and one or more of"),
        (["case,patient", "a,p", "a,q", "b,p"], "line 3: a has a row already"),
        (["case,patient", "a,", "b,p"], "line 2: names no patient"),
        (["case,grade", "a,high", "b,HGG"], "line 2: 'high' is no grade; expected HGG or LGG"),
        (["case,patient", "a,p,1", "b,p"], "line 2: expected 2 cells, found 3"),
        (["case,patient,visit", "a,p,1", "b,p,1"], "a and b are both visit 1 of p"),
        (["case,patient", "a,p:1", "b,p"], "'p:1' can't be the name of a case or patient"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, rows, words):
    table = write_table(tmp_path / "who.csv", *rows)
    with pytest.raises(UserError, match=words):
        find_cases(touch(tmp_path / "s", "a_t1.nii", "b_t1.nii"), own("{case}_{contrast}.nii"), table=table)


def test_names_that_no_archive_may_hold_are_refused_before_anything_is_cut(tmp_path):
    put(tmp_path / "s" / "clinic:7" / "t1.nii.gz", draw()["t1"])
    options = ("--contrasts", "t1", "--pattern", "{patient}/{contrast}.nii.gz")
    output = convert(tmp_path / "s", tmp_path / "x.zip", *options, expected=2)
    assert "'clinic:7' can't be the name of a case or patient" in output and os.listdir(tmp_path) == ["s"]
    stored = draw_slice(np.random.RandomState(0), 16)
    for fields in ({"patient": "a/b"}, {"patient": "a", "volume": ".b"}):
        with pytest.raises(UserError, match="can't stand in an archive"):
            with ArchiveWriter(tmp_path / "y.zip", BRATS, 16, made={}) as writer:
                writer.add(stored, **fields)
    with pytest.raises(UserError, match="can't stand in an archive"):
        ArchiveWriter(tmp_path / "z.zip", BRATS, 16, made={}, seen=["p", "q:1"]).__enter__()
    assert not (tmp_path / "z.zip").exists()


def test_the_words_of_a_case_with_few_of_its_files(tmp_path):
    touch(tmp_path, *flat("Brats18_X_1_1", ("t2",)))
    (case,) = find_cases(tmp_path).cases
    with pytest.raises(UserError, match="_t1.nii.gz is missing; .* but there is only Brats18_X_1_1_t2.nii.gz"):
        case.require_files()

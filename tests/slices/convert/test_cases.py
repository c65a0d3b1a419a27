"""What a folder holds and whose it is: patterns, tables of cases, files of no case, and what is said of a folder."""

import os
import re

import nibabel as nib
import numpy as np
import pytest

from commands import call
from dnnlib import config
from dnnlib.errors import UserError
from drawn import draw_slice
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.convert.patterns import Pattern
from slices.convert.recognition import find_cases
from slices.convert.releases import describe_release, release_of_name
from slices.schema import BRATS
from test_releases import convert, draw, put, write_flat

FOUR = ("t1", "t1ce", "t2", "flair")


def touch(folder, *names):
    """Empty files: enough for everything that goes by names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def flat(case, kinds=(*FOUR, "seg"), ending=".nii.gz", join="_"):
    return [f"{case}/{case.split('/')[-1]}{join}{kind}{ending}" for kind in kinds]


def gli(case):
    return flat(case, ("t1n", "t1c", "t2w", "t2f", "seg"), join="-")


def own(pattern, contrasts="t1", labels=None, masks=None):
    return describe_release(contrasts, pattern, labels, masks)


def named(found):
    return [(case.name, case.patient) for case in found.cases]


# --- patterns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern, files, cases",
    [
        ("{patient:3}{visit:1}_{contrast}.nii", ["ab12_t1.nii", "ab1x_t1.nii"], [("ab1-2", "ab1"), ("ab1-x", "ab1")]),
        (
            r"{patient:[A-Z]+\d{2}}{visit}_{contrast}.nii",
            ["QX01b_t1.nii", "QX01c_t1.nii"],
            [("QX01-b", "QX01"), ("QX01-c", "QX01")],
        ),
        (
            r"MR{patient:\d+}[{visit:[a-z]}].nii.gz",
            ["MR7.nii", "MR7b.nii", "MR12.nii"],
            [("12", "12"), ("7", "7"), ("7-b", "7")],
        ),
        (
            "./*/scans_*/{case}_{contrast}.nii.gz",
            ["siteA/scans_1/x_t1.nii", "siteB/scans_22/y_t1.nii"],
            [("x", "x"), ("y", "y")],
        ),
        ("[{visit:[a-z]+}]/{patient}_{contrast}.nii.gz", ["p_t1.nii", "b/p_t1.nii"], [("p", "p"), ("p-b", "p")]),
        ("{case}/*[_run-1]_{contrast}.nii.gz", ["a/z_run-1_t1.nii", "b/z_t1.nii"], [("a", "a"), ("b", "b")]),
    ],
)
def test_patterns_say_whose_case_it_is(tmp_path, pattern, files, cases):
    assert named(find_cases(touch(tmp_path, *files), own(pattern))) == cases


def test_bids_with_and_without_a_session_in_one_pattern(tmp_path):
    touch(tmp_path, "sub-1/ses-a/anat/sub-1_ses-a_acq-iso_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz")
    pattern = "sub-{patient}/[ses-{visit}/]anat/sub-{patient}[_ses-{visit}][_*]_{contrast}.nii.gz"
    found = find_cases(tmp_path, own(pattern, "t1=T1w"))
    assert named(found) == [("1-a", "1"), ("2", "2")] and "fit" not in found.words
    assert not any(case.missing_file() for case in found.cases)


@pytest.mark.parametrize(
    "pattern, words",
    [
        (
            "{patient}{visit}_{contrast}.nii",
            "fits ab1_t1.nii in two ways: patient a, visit b1, .*{patient:4} .*--cases",
        ),
        (r"{patient:\w+}{visit:\w+}_{contrast}.nii", "in two ways: patient a, visit b1, contrast t1 or patient ab"),
        ("{case}[_{visit}_{contrast}.nii", "a bracket \\[ without its other one"),
        ("{patient:[}_{contrast}.nii", "expected a number of characters or a regular expression"),
        ("{patient:[a-z]*}_{contrast}.nii", "may stand for nothing"),
        ("{patient:2}/{patient:3}_{contrast}.nii", "{patient} is given as 2 and as 3"),
        ("{contrast:2}_{case}.nii", "takes neither a width nor an expression"),
        ("**/{case}_{contrast}.nii", "write \\*/ for each"),
        ("[{case}_]{contrast}.nii", "needs {case} or {patient}"),
    ],
)
def test_patterns_that_make_no_sense(tmp_path, pattern, words):
    with pytest.raises(UserError, match=words):
        find_cases(touch(tmp_path, "ab1_t1.nii"), own(pattern))


def test_every_reading_is_found_whatever_an_expression_prefers():
    ways = Pattern.parse(r"{patient:\d+}{visit:\d+}.nii").ways("123.nii.gz")
    assert [way.values for way in ways] == [{"patient": "1", "visit": "23"}, {"patient": "12", "visit": "3"}]


# --- two files of one name ------------------------------------------------------------------------------------------


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
    with pytest.raises(UserError, match=f"{twin} and {twin}.gz claim to be the same file of the case BRATS_007"):
        find_cases(tmp_path)


def test_two_scans_of_one_contrast_are_refused(tmp_path):
    touch(tmp_path, "a/run1_t1.nii", "a/run2_t1.nii")
    with pytest.raises(UserError, match="a/run1_t1.nii and a/run2_t1.nii claim to be the same file of the case a"):
        find_cases(tmp_path, own("{case}/*_{contrast}.nii"))
    touch(tmp_path / "s", "x/a_t1.nii", "y/a_t2.nii")  # two people, neither complete, never become one
    with pytest.raises(UserError, match="have one name"):
        find_cases(tmp_path / "s", own("*/{case}_{contrast}.nii", "t1,t2"))


def test_the_odd_mask_never_wins_over_a_proper_one(tmp_path):
    touch(tmp_path, *flat("BraTS20_Training_355", ending=".nii"), "BraTS20_Training_355/W39_1998.09.19_Segm.nii")
    found = find_cases(tmp_path)
    assert found.cases[0].mask.name == "BraTS20_Training_355_seg.nii"
    assert "1 NIfTI file fits no pattern, such as BraTS20_Training_355/W39_1998.09.19_Segm.nii" in found.words


# --- files of no case -----------------------------------------------------------------------------------------------


def test_what_fits_no_pattern_is_said_and_recorded(tmp_path):
    source = tmp_path / "s"
    write_flat(source, "Brats18_X_1_1", draw())
    convert(source, tmp_path / "clean.zip")
    assert "files" not in ArchiveReader(tmp_path / "clean.zip").info.made["skipped"]
    touch(
        source,
        "Brats18_X_1_1/Brats18_X_1_1_dwi.nii.gz",
        "late/year2/Brats18_X_2_1/Brats18_X_2_1_t1.nii.gz",
        "Brats18_X_3_1 (copy)/Brats18_X_3_1_t1.nii.gz",
        "._Brats18_X_4_1_t1.nii.gz",
        ".trash/x.nii.gz",
        "derivatives/x_mask.nii.gz",
        "Brats18_X_5_1/Brats18_X_5_1_T1.NII",
        "q.mgz",
    )
    os.symlink("..", source / "late" / "again")  # a way back up
    output = convert(source, tmp_path / "x.zip")
    assert "3 NIfTI files fit no pattern, such as Brats18_X_3_1 (copy)/Brats18_X_3_1_t1.nii.gz, late/year2/" in output
    assert (
        "not read, as only .nii.gz and .nii are: 2 files, such as Brats18_X_5_1/Brats18_X_5_1_T1.NII, q.mgz" in output
    )
    left = {"fit no pattern": 3, "not .nii.gz or .nii": 2}
    assert ArchiveReader(tmp_path / "x.zip").info.made["skipped"]["files"] == left
    assert "left out: fit no pattern: 3 files" in call("inspect", tmp_path / "x.zip")


def test_a_folder_that_is_a_link_to_nothing_is_told(tmp_path):
    source = touch(tmp_path / "s", *flat("p1", ["t1"]))
    os.symlink(tmp_path / "unmounted", source / "p2")
    os.symlink("c1", source / ".c1")
    words = find_cases(source, own("{case}/{case}_{contrast}.nii.gz")).words
    assert words.endswith("1 file, such as p2 (a link to nothing)")


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


# --- whose case it is -----------------------------------------------------------------------------------------------


def write_table(path, *rows, encoding="utf-8"):
    path.write_text("\n".join(rows) + "\n", encoding=encoding)
    return path


def test_a_table_keeps_a_patient_on_one_side_and_tells_grades(tmp_path):
    """Names tell nothing here: k0, k2, k4 are of one patient, k1, k3, k5 of another, k6 of a third."""
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
        train, test = (ArchiveReader(tmp_path / "out" / f"{side}.zip") for side in ("train", "test"))
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
    "names, pair",
    [
        (["q3_tp1", "q3_tp2", "q4_tp1"], "q3_tp1 and q3_tp2"),
        (["7pre", "7post", "8pre"], "7post and 7pre"),
        (["BraTS-PED-00001-000", "BraTS-PED-00001-001", "BraTS-PED-00002-000"], "BraTS-PED-00001-000 and BraTS-PED-"),
        (["scan_1", "scan_2", "scan_3"], None),  # numbered patients
        (["dev1", "dev2", "rev1"], None),
        (["TCGA_DU_7294", "TCGA_DU_5849", "TCGA_CS_4941"], None),
        (["A_001", "A_002", "B_001"], None),  # of two hospitals
        (["r7 2011-03-09", "r7 2012-10-30", "r8 2011-03-09"], "r7 2011-03-09 and r7 2012-10-30"),
        (["TCGA_CS_4941_19960909", "TCGA_CS_4942_19970222"], None),  # one each
        (["u1-11", "u1-21", "u2-11", "u3-21", "u4-11"], "u1-11 and u1-21"),
        ([f"{site}.{n}" for site in "ABCD" for n in range(5)], None),  # of four hospitals
    ],
)
def test_cases_that_look_like_visits_of_one_patient_are_told(tmp_path, names, pair):
    touch(tmp_path, *(f"{name}.nii" for name in names))
    words = find_cases(tmp_path, own("{case}.nii")).words
    assert "visits" not in words if pair is None else f"{pair}" in words and "visits of one patient" in words


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


# --- other releases' names, and nothing found -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "release, files, words",
    [
        (
            "2023-gli",
            gli("BraTS-MEN-00008-000"),
            "challenge on meningioma, not of BraTS 2023 GLI, .*--contrasts t1=t1n",
        ),
        ("2024-gli", gli("BraTS-MET-00008-000"), "challenge on metastases"),
        ("2021", flat("brats_ssa_0004"), "sub-Saharan Africa"),
        ("2024-gli", gli("Brats18_CBICA_AAB_1-000"), "is a name of BraTS 2018, .*choose --release 2018"),
        ("2018", flat("BRATS_004"), "Decathlon.*choose --release msd"),
        ("2021", flat("BraTS-GLI-00005-000"), "choose --release 2023-gli or 2024-gli"),
        ("2021", ["LGG/" + f for f in flat("Brats18_X_1")], "there .*names of other releases: --release 2018"),
    ],
)
def test_names_known_to_be_others_are_refused_under_a_named_release(tmp_path, release, files, words):
    with pytest.raises(UserError, match=f"{words}"):
        find_cases(touch(tmp_path, *files), release_of_name(release))


BIDS = "'sub-{patient}/[ses-{visit}/]anat/sub-{patient}[_ses-{visit}][_*]_{contrast}.nii.gz'"


@pytest.mark.parametrize(
    "files, words",
    [
        ([], "the folder is empty"),
        (["notes.txt"], "no NIfTI file is there, but notes.txt"),
        (["x/a_t1.mha"], "1 file such as x/a_t1.mha is not read, only names that end in .nii.gz or .nii are"),
        (["a/b/c/" + f for f in gli("BraTS-GLI-00005-000")], "5 NIfTI files, .*Its folder a/b/c holds cases"),
        (["u/v/LGG/" + f for f in flat("Brats17_X_1")], "Its folder u/v holds cases: give that as --source"),
        (gli("BraTS-SSA-00008-000"), "BraTS-SSA-00008-000 is a name of .*which is none of these releases"),
        (["BraTS-MEN-RT-9-1/BraTS-MEN-RT-9-1_t1c.nii.gz"], "meningioma, .*: --contrasts … --labels … --pattern …"),
        (
            flat("BraTS20_Validation_004", FOUR),
            "no masks such as BraTS20_Validation_004_seg.nii.gz: is it a validation",
        ),
        (["v/" + f for f in flat("BraTS20_Validation_004", FOUR)], "Its folder v looks more like it"),
        (
            ["imagesTr/x_0000.nii.gz", "imagesTr/x_0001.nii.gz", "labelsTr/x.nii.gz"],
            "nnU-Net: --contrasts …=0000,…=0001",
        ),
        (["d/imagesTr/heart_1.nii.gz", "d/labelsTr/heart_1.nii.gz"], "Its folder d looks more like it"),
        (["sub-1/anat/sub-1_T1w.nii.gz"], f"by BIDS, with T1w: .*{re.escape(BIDS)}"),
        (gli("Clinic-00008-000"), r"--release 2023-gli \(1 .*\), --release 2024-gli \(1 non-enhancing tumour core,"),
    ],
)
def test_nothing_recognized_says_what_is_there_and_what_would_do(tmp_path, files, words):
    folder = tmp_path / "s"
    folder.mkdir()
    with pytest.raises(UserError, match=f"no cases found of any release: 2017, 2018, .*{words}"):
        find_cases(touch(folder, *files))


@pytest.mark.parametrize(
    "below, pattern, files, words",
    [
        (
            "",
            "{case}_{contrast}.nii",
            ["a_T1w.nii", "a_FLAIR.nii"],
            "call their contrasts T1w, FLAIR: say with --contrasts",
        ),
        ("", "{case}_{contrast}.nii", ["x/a_t1.nii", "y/a_t1.nii"], r"write --pattern '\*/{case}_{contrast}.nii'"),
        ("", "{patient}/{contrast}.nii", ["x/1/t1.nii", "y/2/t1.nii"], "patients with visits, '{patient}/{visit}/…'"),
        ("img", "img/{case}_{contrast}.nii", ["img/a_t1.nii"], "inside the right folder: give .*/s as --source"),
        ("", "{case}/{contrast}.nii", ["sub-1/ses-2/anat/sub-1_ses-2_T1w.nii.gz"], "by BIDS, with T1w"),
    ],
)
def test_nothing_found_of_a_description(tmp_path, below, pattern, files, words):
    touch(tmp_path / "s", *files)
    with pytest.raises(UserError, match=f"no cases found of your data; expected in it .*{words}"):
        find_cases(tmp_path / "s" / below, own(pattern))


def test_a_mask_pattern_that_asks_for_more_than_a_case_has(tmp_path):
    touch(tmp_path, "P_t1.nii", "P_v2_t1.nii", "P_v2_m.nii")
    release = own("{patient:[A-Z]}[_{visit}]_{contrast}.nii", labels="x=1", masks="{patient}_{visit}_m.nii")
    one, other = find_cases(tmp_path, release).cases
    assert one.mask.name == "P_*_m.nii" and one.missing_file() == one.mask and not other.missing_file()


def test_the_words_of_a_case_with_few_of_its_files(tmp_path):
    touch(tmp_path, *flat("Brats18_X_1_1", ("t2",)))
    (case,) = find_cases(tmp_path).cases
    with pytest.raises(UserError, match="_t1.nii.gz is missing; .* but there is only Brats18_X_1_1_t2.nii.gz"):
        case.require_files()


# --- label values ---------------------------------------------------------------------------------------------------


def test_several_values_of_a_class_and_values_to_ignore(tmp_path):
    """Values 1 and 4 are one class, 2 is ignored: as if the masks had been rewritten so."""
    drawn = draw()
    rewritten = drawn | {"seg": np.where(np.isin(drawn["seg"], (1, 4)), 1, 0).astype(np.uint8)}
    for folder, volumes in (("s", drawn), ("rewritten", rewritten)):
        write_flat(tmp_path / folder, "a", volumes)
    described = ("--contrasts", "t1", "--pattern", "{case}/{case}_{contrast}.nii.gz", "--slices", "all")
    output = convert(tmp_path / "s", tmp_path / "x.zip", *described, "--labels", "core=4+1,ignore=2")
    ignored = int((drawn["seg"] == 2).sum())
    note = "label values that are ignored, taken as background"
    assert re.search(rf"note: {note} +1 case, {ignored} voxels +a\n", output), output
    convert(tmp_path / "rewritten", tmp_path / "y.zip", *described, "--labels", "core=1")
    one, other = ArchiveReader(tmp_path / "x.zip"), ArchiveReader(tmp_path / "y.zip")
    assert len(one) == len(other) and all(np.array_equal(one.read(i), other.read(i)) for i in range(len(one)))
    assert one.info.made["voxels"] == {note: ignored} and one.schema.ignored == (2,)
    assert one.schema.classes[0].values == (4, 1) and one.schema.channels == other.schema.channels
    shown = call("inspect", tmp_path / "x.zip")
    assert "class core: values 4, 1 in NIfTI files" in shown and "value 2 in NIfTI files" in shown
    assert "1 contrast and 2 label maps" in shown
    call("export", tmp_path / "x.zip", "--dest", tmp_path / "e", "--format", "nifti")
    values = np.unique(nib.load(tmp_path / "e" / "a" / "a_seg.nii.gz").dataobj)
    assert values.tolist() == [0, 4]
    assert config.to_json(BRATS.classes[0]) == {"name": "NCR", "title": "necrosis / non-enhancing", "value": 1}
    assert list(config.to_json(BRATS)) == ["contrasts", "classes", "regions"]  # as it always was


@pytest.mark.parametrize(
    "labels, words",
    [
        ("a=3,b=1,a=5", "a stands there twice; several values of one class are written a=3\\+5"),
        ("a=1,ignore=2+1", "1 stands for a and for ignore: lesion classes need different label values"),
        ("a=7+7", "7 stands twice"),
        ("ignore=0,a=1", "0 stands for the background and for ignore"),
        ("ignore=3", "names no class"),
        ("Ignore=3", "names no class"),
        ("a=1+", "such as lesion=1, or several, as in core=1\\+4"),
        ("a=1,ignore", "or several"),
    ],
)
def test_labels_that_make_no_sense(labels, words):
    with pytest.raises(UserError, match=words):
        own("{case}_{contrast}.nii", labels=labels)


def test_lesions_that_are_no_tumors_are_not_called_so(tmp_path):
    write_flat(tmp_path / "s", "a", draw())
    described = ("--contrasts", "t1", "--labels", "plaque=1+2+4", "--pattern", "{case}/{case}_{contrast}.nii.gz")
    output = convert(tmp_path / "s", tmp_path / "x.zip", *described)
    assert "left out: no lesion" in output and "tumo" not in output.partition("written:")[0]
    output = convert(tmp_path / "s", tmp_path / "y.zip", *described, "--min-tumor-pixels", 4000, expected=2)
    assert "not even the only case for y.zip has a slice with a lesion of 4000 or more pixels" in output

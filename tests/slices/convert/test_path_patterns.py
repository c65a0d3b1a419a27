"""Path patterns: what they say about files, and which are refused."""

import pytest

from dnnlib.errors import UserError
from helpers.layouts import draw, named, own, put, touch
from slices.convert.path_patterns import Pattern
from slices.convert.recognition import find_cases
from slices.convert.releases import describe_release


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
        ("{case}[_{visit}_{contrast}.nii", "a bracket \\[ without its counterpart"),
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


def test_patients_and_visits_in_a_pattern(tmp_path):
    for patient, visit in (("p1", "a"), ("p1", "b"), ("p2", "a")):
        put(tmp_path / patient / visit / "T1.nii", draw()["t1"])
    found = find_cases(tmp_path, describe_release("t1=T1", "{patient}/{visit}/{contrast}.nii.gz"))
    assert [(case.name, case.patient) for case in found.cases] == [("p1-a", "p1"), ("p1-b", "p1"), ("p2-a", "p2")]
    assert found.cases[0].paths == [tmp_path / "p1" / "a" / "T1.nii"]


def test_a_pattern_that_can_be_read_in_two_ways(tmp_path):
    for name in ("X_01_v1", "Y_02_v1"):
        put(tmp_path / f"{name}_t1.nii.gz", draw()["t1"])
    with pytest.raises(
        UserError, match="fits X_01_v1_t1.nii.gz in two ways: patient X, visit 01_v1, contrast t1 or pat"
    ):
        find_cases(tmp_path, describe_release("t1", "{patient}_{visit}_{contrast}.nii.gz"))
    assert len(find_cases(tmp_path, describe_release("t1", "{case}_{contrast}.nii.gz")).cases) == 2

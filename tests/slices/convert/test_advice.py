"""Advice for folders in which no case is found."""

import re

import pytest

from dnnlib.errors import UserError
from helpers.layouts import CONTRASTS, flat, gli, own, touch, write_release
from slices.convert.recognition import find_cases


def test_a_folder_further_down_is_pointed_at(tmp_path):
    write_release(tmp_path / "MICCAI_Data", "2020")
    with pytest.raises(UserError, match="Its folder MICCAI_Data holds cases"):
        find_cases(tmp_path)


BIDS = "'sub-{patient}/[ses-{visit}/]anat/sub-{patient}[_ses-{visit}][_*]_{contrast}.nii.gz'"


@pytest.mark.parametrize(
    "files, words",
    [
        ([], "the folder is empty"),
        (["notes.txt"], "no NIfTI file is there, but notes.txt"),
        (["x/a_t1.mha"], "1 file such as x/a_t1.mha is not read, only names that end in .nii.gz or .nii are"),
        (["a/b/c/" + f for f in gli("BraTS-GLI-00005-000")], "5 NIfTI files, .*Its folder a/b/c holds cases"),
        (["u/v/LGG/" + f for f in flat("Brats17_X_1")], "Its folder u/v holds cases: give that as --source"),
        (gli("BraTS-SSA-00008-000"), "BraTS-SSA-00008-000 is a name of .*not one of the known releases"),
        (["BraTS-MEN-RT-9-1/BraTS-MEN-RT-9-1_t1c.nii.gz"], "meningioma. .*: --contrasts … --labels … --pattern …"),
        (
            flat("BraTS20_Validation_004", CONTRASTS),
            "no masks such as BraTS20_Validation_004_seg.nii.gz: is it a validation",
        ),
        (["v/" + f for f in flat("BraTS20_Validation_004", CONTRASTS)], "Its folder v looks more like it"),
        (
            ["imagesTr/x_0000.nii.gz", "imagesTr/x_0001.nii.gz", "labelsTr/x.nii.gz"],
            "nnU-Net: --contrasts …=0000,…=0001",
        ),
        (["d/imagesTr/heart_1.nii.gz", "d/labelsTr/heart_1.nii.gz"], "Its folder d looks more like it"),
        (["sub-1/anat/sub-1_T1w.nii.gz"], f"by BIDS, with T1w: .*{re.escape(BIDS)}"),
        (gli("Clinic-00008-000"), r"--release 2023-gli \(1 .*\), --release 2024-gli \(1 non-enhancing tumor core,"),
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

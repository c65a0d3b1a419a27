"""Recognition of a folder: its release, files that belong to no case, and messages about them."""

import os

import nibabel as nib
import numpy as np
import pytest

from dnnlib.errors import UserError
from helpers.commands import call, convert
from helpers.layouts import (
    draw,
    flat,
    gli,
    own,
    touch,
    write_decathlon,
    write_flat,
    write_release,
)
from slices.archive.reader import ArchiveReader
from slices.convert.recognition import find_cases
from slices.convert.releases import release_of_name
from slices.convert.volumes import read_case


def test_names_of_no_release_are_not_taken_for_one(tmp_path):
    write_flat(tmp_path, "patient07", draw())
    with pytest.raises(UserError, match="patient07 .*no release has such names.*--release 2018 .*or describe the data"):
        find_cases(tmp_path)
    assert [case.name for case in find_cases(tmp_path, release_of_name("2018")).cases] == ["patient07"]


def test_two_releases_in_one_folder(tmp_path):
    write_release(tmp_path, "2018")
    write_release(tmp_path, "2021")
    with pytest.raises(UserError, match=r"several releases: choose --release 2018 .*2 cases such as .*--release 2021"):
        find_cases(tmp_path)


def test_a_decathlon_of_another_order_is_refused(tmp_path):
    write_decathlon(tmp_path, order=("t1", "flair", "t1ce", "t2"))
    with pytest.raises(UserError, match=r"dataset.json: the channels are \['T1w', 'FLAIR', 't1gd', 'T2w'\]"):
        find_cases(tmp_path)
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "MRI"}}')  # another task of the Decathlon
    with pytest.raises(UserError, match=r"dataset.json: the channels are \['MRI'\], those of Task01_BrainTumour are"):
        find_cases(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="not the description of Task01_BrainTumour"):
        find_cases(tmp_path)


def test_images_and_masks_of_one_name_are_told_apart(tmp_path):
    write_decathlon(tmp_path, count=1)
    path = tmp_path / "labelsTr" / "BRATS_001.nii.gz"
    image = nib.load(path)
    image.affine[0, 3] += 0.25
    voxels = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(voxels, image.affine), path)
    found = find_cases(tmp_path)
    remark = "labelsTr/BRATS_001.nii.gz: lies 0.25 mm off imagesTr/BRATS_001.nii.gz, voxels taken as on its grid"
    assert remark in read_case(found.cases[0], found.release.schema).remarks
    path.unlink()
    with pytest.raises(UserError, match="consists of imagesTr/BRATS_001.nii.gz, labelsTr/BRATS_001.nii.gz"):
        found.cases[0].require_files()


def test_a_release_that_is_named_takes_no_cases_of_others(tmp_path):
    write_release(tmp_path, "2020")
    write_release(tmp_path, "2021")
    found = find_cases(tmp_path, release_of_name("2021"))
    assert [case.name for case in found.cases] == ["BraTS2021_00001", "BraTS2021_00002"]
    assert "left out: 2 cases of other releases, such as BraTS20_Training_001" in found.words


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

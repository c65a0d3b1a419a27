"""Releases: every layout, what is recognized from names and what is not, and the traps that published files hold."""

import json
import os
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from commands import call
from dnnlib.errors import UserError
from drawn import BRIGHT, MARKER, draw_head, turned, write_nifti
from slices.archive.reader import ArchiveReader
from slices.convert.cut_cases import Workplace
from slices.convert.recognition import find_cases
from slices.convert.releases import RELEASES, describe_release, release_of_name
from slices.convert.volumes import read_case
from slices.schema import BRATS

CONTRASTS = BRATS.contrasts
GLI = dict(zip(CONTRASTS, ("t1n", "t1c", "t2w", "t2f"), strict=True))
# Classes of the drawn label map, whose values are BraTS's of 2018: 1 necrosis, 2 oedema, 4 enhancing tumour.
VALUES_OF = {"2023-gli": {1: 1, 2: 2, 4: 3}, "2024-gli": {1: 1, 2: 2, 4: 3}, "msd": {1: 2, 2: 1, 4: 3}}


def convert(source, dest, *arguments, expected=0):
    return call(
        "convert", "--source", source, "--dest", dest, "--resolution", 64, "--workers", 1, *arguments, expected=expected
    )


def draw(seed=0, values=None):
    """A drawn patient whose label map has other values: {1: …, 2: …, 4: …}."""
    volumes = draw_head(seed)
    if values:
        volumes["seg"] = np.array([0, values[1], values[2], 0, values[4]], np.uint8)[volumes["seg"]]
    return volumes


def put(path, volume, axes="LPS"):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, *turned(volume, axes))


def write_flat(parent, name, volumes, join="_", names=None, suffix=".nii.gz"):
    for kind, volume in volumes.items():
        put(parent / name / f"{name}{join}{(names or {}).get(kind, kind)}{suffix}", volume)


def write_decathlon(source, count=2, order=("flair", "t1", "t1ce", "t2")):
    modality = {str(i): {"flair": "FLAIR", "t1": "T1w", "t1ce": "t1gd", "t2": "T2w"}[c] for i, c in enumerate(order)}
    for n in range(1, count + 1):
        volumes = draw(n, VALUES_OF["msd"])
        image, affine = turned(volumes["seg"], "RAS")
        channels = np.stack([turned(volumes[contrast], "RAS")[0] for contrast in order], axis=-1)
        for folder, array in (("imagesTr", channels), ("labelsTr", image)):
            (source / folder).mkdir(parents=True, exist_ok=True)
            write_nifti(source / folder / f"BRATS_{n:03d}.nii.gz", array, affine)
            (source / folder / f"._BRATS_{n:03d}.nii.gz").write_bytes(b"a resource fork of macOS")
    (source / "dataset.json").write_text(json.dumps({"modality": modality}))


def write_release(source, name):
    """Two drawn patients in the layout and with the names and label values of a release."""
    two = [draw(n, VALUES_OF.get(name)) for n in (1, 2)]
    if name == "msd":
        write_decathlon(source)
    elif name.endswith("-gli"):
        for n, volumes in enumerate(two):
            write_flat(source, f"BraTS-GLI-0000{n}-000", volumes, "-", GLI)
    elif name in ("2020", "2021"):
        for n, volumes in enumerate(two, start=1):
            case = f"BraTS20_Training_00{n}" if name == "2020" else f"BraTS2021_0000{n}"
            write_flat(source, case, volumes, suffix=".nii" if name == "2020" else ".nii.gz")
    else:
        prefix = {"2017": "Brats17_TCIA", "2018": "Brats18_CBICA", "2019": "BraTS19_2013", "phantom": "Phantom000"}[
            name
        ]
        for n, (grade, volumes) in enumerate(zip(("HGG", "LGG"), two, strict=True)):
            write_flat(source / grade, f"{prefix}_{n}_1", volumes)
        (source / "survival_data.csv").write_text("stray")
        (source / "name_mapping.csv").write_text("stray")


@pytest.mark.parametrize("name", [release.name for release in RELEASES])
def test_every_release(tmp_path, name):
    """Recognized where names tell, and read so that the same anatomy gives the same slices in every release."""
    write_release(tmp_path / "source", name)
    wanted = None
    if name.endswith("-gli"):
        with pytest.raises(UserError, match="don't tell these releases apart: choose --release 2023-gli .*2024-gli"):
            find_cases(tmp_path / "source")
        wanted = release_of_name(name)
    found = find_cases(tmp_path / "source", wanted)
    assert found.release.name == name and len(found.cases) == 2
    output = convert(
        tmp_path / "source", tmp_path / "x.zip", "--slices", "all", *(["--release", name] if wanted else [])
    )
    how = "" if wanted else ", recognized by file names"
    assert re.search(rf"^{re.escape(found.release.title)}{how}: 2 cases of 2 patients, such as .*\.nii", output), output

    reader = ArchiveReader(tmp_path / "x.zip")
    assert reader.schema == found.release.schema and len(reader) == 20
    for patient, drawn in zip(reader.by_patient().values(), (draw_head(1), draw_head(2)), strict=True):
        for k, i in enumerate(patient):
            contrasts, classes = reader.schema.split(reader.read_checked(i))
            expected = np.array([0, 1, 2, 0, 3])[drawn["seg"][:, :, k].T]  # NCR (or NETC), ED (or SNFH), ET
            np.testing.assert_array_equal(classes[2:62, 2:62], expected)
            bright = np.zeros((64, 64), bool)
            bright[MARKER[1].start + 2 : MARKER[1].stop + 2, MARKER[0].start + 2 : MARKER[0].stop + 2] = 3 <= k < 7
            for n, contrast in enumerate(CONTRASTS):
                low, high = reader.info.volumes[reader.info.slices[i].volume].windows[contrast]
                assert (contrasts[n][bright] == 255).all() and low < drawn[contrast].max() == BRIGHT
                middle = drawn[contrast][:, :, k].T[contrasts[n][2:62, 2:62] == 128]
                assert np.abs(middle - (low + 127 / 254 * (high - low))).max(initial=0) <= (high - low) / 254


def test_the_table():
    """Facts of the reference: values, grids, and four tumour classes in 2024, so nine channels."""
    values = {r.name: {c.name: c.value for c in r.schema.classes} for r in RELEASES}
    for name in ("2017", "2018", "2019", "2020", "2021", "phantom"):
        assert values[name] == {"NCR": 1, "ED": 2, "ET": 4}
    assert values["2023-gli"] == {"NCR": 1, "ED": 2, "ET": 3} and values["msd"] == {"NCR": 2, "ED": 1, "ET": 3}
    post = release_of_name("2024-gli")
    assert values["2024-gli"] == {"NETC": 1, "SNFH": 2, "ET": 3, "RC": 4} and post.schema.num_channels == 9
    assert {region.name: region.classes for region in post.schema.regions} == {
        "WT": ("NETC", "SNFH", "ET"),
        "TC": ("NETC", "ET"),
        "ET": ("ET",),
        "RC": ("RC",),
    }
    assert post.grid == (182, 218, 182) and release_of_name("2018").grid == (240, 240, 155)


# --- recognition ----------------------------------------------------------------------------------------------------


def test_names_of_no_release_are_not_taken_for_one(tmp_path):
    write_flat(tmp_path, "patient07", draw())
    with pytest.raises(UserError, match="patient07 .*names of no release.*--release 2018 .*or describe the data"):
        find_cases(tmp_path)
    assert [case.name for case in find_cases(tmp_path, release_of_name("2018")).cases] == ["patient07"]


def test_two_releases_in_one_folder(tmp_path):
    write_release(tmp_path, "2018")
    write_release(tmp_path, "2021")
    with pytest.raises(UserError, match=r"several releases: choose --release 2018 .*2 cases such as .*--release 2021"):
        find_cases(tmp_path)


def test_a_folder_further_down_is_pointed_at(tmp_path):
    write_release(tmp_path / "MICCAI_Data", "2020")
    with pytest.raises(UserError, match="Its folder MICCAI_Data holds cases"):
        find_cases(tmp_path)


def test_label_values_never_decide(tmp_path):
    """2023's data named as 2018's: value 3 is unknown there, and nothing is guessed."""
    write_flat(tmp_path / "source", "Brats18_X_1_1", draw(1, VALUES_OF["2023-gli"]))
    output = convert(tmp_path / "source", tmp_path / "x.zip", expected=2)
    assert "unknown label value 3; expected 0 and 1, 2, 4" in output and not (tmp_path / "x.zip").exists()


def test_another_grid_than_the_releases_is_remarked(tmp_path):
    write_release(tmp_path / "source", "2024-gli")
    output = convert(tmp_path / "source", tmp_path / "x.zip", "--release", "2024-gli")
    assert "the release's volumes have 182×218×182 voxels, these don't: is it another one?" in output


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


# --- traps ----------------------------------------------------------------------------------------------------------


def test_the_mask_of_case_355(tmp_path):
    for n in (354, 355):
        write_flat(tmp_path, f"BraTS20_Training_{n}", draw(n), suffix=".nii")
    folder = tmp_path / "BraTS20_Training_355"
    (folder / "BraTS20_Training_355_seg.nii").rename(folder / "W39_1998.09.19_Segm.nii")
    cases = find_cases(tmp_path).cases
    assert [case.mask.name for case in cases] == ["BraTS20_Training_354_seg.nii", "W39_1998.09.19_Segm.nii"]
    assert not any(case.missing_file() for case in cases)
    (folder / "W39_1998.09.19_Segm.nii").unlink()
    assert find_cases(tmp_path).cases[1].missing_file() == folder / "BraTS20_Training_355_seg.nii.gz"


def test_visits_of_a_patient_stay_on_one_side_of_the_split(tmp_path):
    volumes = draw()
    for patient in range(6):
        for visit in range(1 + patient % 3):
            write_flat(
                tmp_path / "s", f"BraTS-GLI-0000{patient}-00{visit}", volumes | {"seg": volumes["seg"] // 2}, "-", GLI
            )
    for seed in range(4):
        convert(
            tmp_path / "s",
            tmp_path / f"out{seed}",
            "--release",
            "2023-gli",
            "--test-fraction",
            0.5,
            "--split-seed",
            seed,
        )
        train, test = (ArchiveReader(tmp_path / f"out{seed}" / f"{side}.zip") for side in ("train", "test"))
        assert len(train.info.patients) == len(test.info.patients) == 3
        assert not set(train.info.patients) & set(test.info.patients)
        assert len(train.info.volumes) + len(test.info.volumes) == 12  # all visits
        for reader, part in ((train, "train"), (test, "test")):
            assert {record.part for record in reader.info.slices} == {part}
            assert all(record.volume.startswith(record.patient + "-00") for record in reader.info.slices)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_masks_of_any_type(tmp_path, dtype):
    write_flat(tmp_path / "s", "Brats18_X_1_1", draw())
    convert(tmp_path / "s", tmp_path / "a.zip")
    path = tmp_path / "s" / "Brats18_X_1_1" / "Brats18_X_1_1_seg.nii.gz"
    volume, affine = turned(draw()["seg"], "LPS")
    write_nifti(path, volume, affine, dtype)
    assert np.asanyarray(nib.load(path).dataobj).dtype == dtype
    convert(tmp_path / "s", tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_odd_intensities_and_a_case_without_enhancing_tumour(tmp_path):
    """Negative background, one huge maximum, no ET: the slices are those of the plain volume."""
    plain, odd = draw(), draw()
    for volumes in (plain, odd):
        volumes["seg"][volumes["seg"] == 4] = 2
    outside = odd["t1"] == 0
    odd["t2"][outside] = -136
    odd["flair"][30, 30, 5] = 15460
    for name, volumes in (("a", plain), ("b", odd)):
        write_flat(tmp_path / name, "Brats18_X_1_1", volumes)
        convert(tmp_path / name, tmp_path / f"{name}.zip")
    a, b = (ArchiveReader(tmp_path / f"{name}.zip") for name in "ab")
    for i in range(len(a)):
        one, other = a.read(i).astype(int), b.read(i).astype(int)
        np.testing.assert_array_equal(np.delete(one, 3, axis=0), np.delete(other, 3, axis=0))
        away = np.abs(one[3] - other[3])  # one voxel of many moves a percentile by a hair
        assert np.sort(away.ravel())[-2] <= 2 and not one[7].any()
    assert b.info.volumes["Brats18_X_1_1"].windows["flair"][1] < 2000


def test_a_mask_with_another_affine_and_one_of_another_shape(tmp_path):
    write_flat(tmp_path / "s", "Brats18_X_1_1", draw())
    path = tmp_path / "s" / "Brats18_X_1_1" / "Brats18_X_1_1_seg.nii.gz"
    write_nifti(path, draw()["seg"], np.diag((-1.0, -1, 1, 1)))
    assert "its header knows no place" in convert(tmp_path / "s", tmp_path / "a.zip")
    write_nifti(path, draw()["seg"][:-1], np.eye(4))
    output = convert(tmp_path / "s", tmp_path / "b.zip", expected=2)
    assert str(path) in output and "59×60×10 voxels" in output and not (tmp_path / "b.zip").exists()


# --- one's own data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contrasts, classes", [(1, 0), (1, 1), (3, 2), (16, 15), (2, 4)])
def test_any_schema(tmp_path, contrasts, classes):
    """1 to 16 contrasts and 0 to 15 lesion classes, one file each."""
    drawn, names = draw_head(), [f"c{n}" for n in range(contrasts)]
    for case in ("a", "b"):
        for n, name in enumerate(names):
            put(tmp_path / "s" / name / f"{case}.nii.gz", drawn["t1"] + 7 * n)
        mask = np.zeros_like(drawn["seg"])
        for k in range(classes):
            mask[20 + k, 30:40, 3:7] = 10 + 3 * k
        put(tmp_path / "s" / "masks" / f"{case}.nii.gz", mask)
    options = ["--contrasts", ",".join(names), "--pattern", "{contrast}/{case}.nii.gz"]
    if classes:
        options += [
            "--labels",
            ",".join(f"l{k}={10 + 3 * k}" for k in range(classes)),
            "--mask-pattern",
            "masks/{case}.nii.gz",
        ]
    output = convert(tmp_path / "s", tmp_path / "x.zip", *options)
    reader = ArchiveReader(tmp_path / "x.zip")
    assert (reader.schema.num_contrasts, reader.schema.num_maps) == (contrasts, classes + 1 if classes else 0)
    assert len(reader) == 2 * (4 if classes else 10), output  # slices with lesions, or with brain
    _, indices = reader.schema.split(reader.read_checked(0))
    assert set(np.unique(indices)) == set(range(classes + 1))
    np.testing.assert_array_equal(np.unique(indices, return_counts=True)[1][1:], [10] * classes)
    call("inspect", tmp_path / "x.zip", "--out", tmp_path / "x.png")


def test_four_dimensions_with_an_order(tmp_path):
    """The Decathlon described by hand gives the slices that the table gives."""
    write_decathlon(tmp_path / "s")
    convert(tmp_path / "s", tmp_path / "a.zip")
    convert(
        tmp_path / "s",
        tmp_path / "b.zip",
        "--contrasts",
        "flair,t1,t1ce,t2",
        "--labels",
        "ED=1,NCR=2,ET=3",
        "--pattern",
        "imagesTr/{case}.nii.gz",
        "--mask-pattern",
        "labelsTr/{case}.nii.gz",
        "--regions",
        "WT=NCR+ED+ET,ET=ET",
    )
    a, b = ArchiveReader(tmp_path / "a.zip"), ArchiveReader(tmp_path / "b.zip")
    assert [region.name for region in b.schema.regions] == ["WT", "ET"]
    for i in range(len(a)):
        np.testing.assert_array_equal(a.read(i)[[3, 0, 1, 2, 4, 6, 5, 7]], b.read(i))
    shutil.copy(tmp_path / "s" / "labelsTr" / "BRATS_001.nii.gz", tmp_path / "s" / "imagesTr" / "BRATS_002.nii.gz")
    output = convert(tmp_path / "s", tmp_path / "c.zip", expected=2)
    assert "BRATS_002.nii.gz: expected 4 volumes, one for each contrast, found the shape 60×60×10" in output


def test_patients_and_visits_in_a_pattern(tmp_path):
    for patient, visit in (("p1", "a"), ("p1", "b"), ("p2", "a")):
        put(tmp_path / patient / visit / "T1.nii", draw()["t1"])
    found = find_cases(tmp_path, describe_release("t1=T1", "{patient}/{visit}/{contrast}.nii.gz"))
    assert [(case.name, case.patient) for case in found.cases] == [("p1-a", "p1"), ("p1-b", "p1"), ("p2-a", "p2")]
    assert found.cases[0].paths == [tmp_path / "p1" / "a" / "T1.nii"]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--contrasts", "t1"], "--pattern is needed as well"),
        (["--labels", "a=1"], "--contrasts is needed as well"),
        (["--release", "2018", "--contrasts", "t1"], "leave one of them out"),
        (["--contrasts", "t1", "--pattern", "{kase}.nii.gz"], "{kase} is unknown; there are {case}, {patient}"),
        (["--contrasts", "t1", "--pattern", "{contrast}.nii.gz"], "needs {case} or {patient}"),
        (["--contrasts", "t1", "--pattern", "{case/{case}_{contrast}.nii.gz"], "a brace without its other one"),
        (["--contrasts", "t1", "--pattern", "{case}.mha"], "ends in .nii.gz or .nii"),
        (["--contrasts", "t1", "--pattern", "../{case}.nii.gz"], "without .."),
        (["--contrasts", "t1,t1", "--pattern", "{case}_{contrast}.nii.gz"], "stands there twice"),
        (["--contrasts", "a=T1,b=T1", "--pattern", "{case}_{contrast}.nii"], "T1 would be read as two channels"),
        (
            ["--contrasts", "t1,x=seg", "--pattern", "{case}_{contrast}.nii", "--labels", "a=1"],
            "seg (where masks lie, unless --mask-pattern says otherwise) would be read as two channels",
        ),
        (
            [
                "--contrasts",
                "t1",
                "--pattern",
                "{case}_{contrast}.nii",
                "--labels",
                "a=1",
                "--mask-pattern",
                "{patient}_m.nii",
            ],
            "{patient} is not known from --pattern",
        ),
        (
            [
                "--contrasts",
                "t1",
                "--pattern",
                "{case}_{contrast}.nii",
                "--labels",
                "a=1",
                "--mask-pattern",
                "{case}_{contrast}.nii",
            ],
            "{contrast} is not known",
        ),
        (["--contrasts", "t1", "--pattern", "{case}_{contrast}.nii", "--labels", "a=4294967296"], "no label value"),
        (["--contrasts", "t1", "--pattern", "{case}_{contrast}.nii", "--resolution", "8192"], "at most 4096"),
        (["--contrasts", "t1,", "--pattern", "{case}_{contrast}.nii.gz"], "expected names such as"),
        (["--contrasts", "t1/2", "--pattern", "{case}_{contrast}.nii.gz"], "looks like a path"),
        (["--contrasts", "t1", "--pattern", "{case}_{contrast}.nii.gz", "--labels", "a"], "such as lesion=1"),
        (["--contrasts", "t1", "--pattern", "{case}_{contrast}.nii.gz", "--labels", "a=0"], "none of them 0"),
        (["--contrasts", "t1", "--pattern", "{case}_{contrast}.nii", "--labels", "a=1,b=1"], "different label values"),
        (["--contrasts", "t1", "--pattern", "{case}_{contrast}.nii.gz", "--labels", "t1=1"], "must differ"),
        (["--contrasts", "t1", "--pattern", "{case}.nii.gz", "--labels", "a=1"], "say with --mask-pattern"),
        (["--contrasts", "t1", "--pattern", "{case}.nii.gz", "--mask-pattern", "{case}.nii"], "with --labels only"),
        (
            ["--contrasts", "t1", "--pattern", "{case}_{contrast}.nii.gz", "--labels", "a=1", "--regions", "w=a+b"],
            "region w names an unknown class: b",
        ),
        (["--contrasts", "t1", "--pattern", "{case}_{contrast}.nii.gz", "--slices", "tumor"], "choose brain or all"),
        (["--contrasts", "t1", "--pattern", "{case}_{contrast}.nii.gz"], "no cases found of your data; expected in it"),
        (["--contrasts", ",".join(f"c{n}" for n in range(17)), "--pattern", "{case}_{contrast}.nii.gz"], "1 to 16"),
    ],
)
def test_descriptions_that_make_no_sense(tmp_path, options, words):
    if "tumor" in options:
        put(tmp_path / "s" / "a_t1.nii.gz", draw()["t1"])
    (tmp_path / "s").mkdir(exist_ok=True)
    output = convert(tmp_path / "s", tmp_path / "x.zip", *options, expected=2)
    assert words in output and len(re.findall("^error: ", output, re.MULTILINE)) == 1, output


# --- conversions that don't end well --------------------------------------------------------------------------------


def break_file(path):
    path.write_bytes(path.read_bytes()[:2000])


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
    """Cut again are the cases that failed, those whose files changed, and all of them for other options."""
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


def test_cases_cut_from_another_source_are_not_taken_for_this_one(tmp_path):
    """The same names, sizes and dates in another folder are other patients."""
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
    """The second is refused while the first holds the folder, and serves once that is gone."""
    with Workplace(tmp_path / "w", {"a": 1}) as first:
        with pytest.raises(UserError, match="another conversion to this place is running"):
            Workplace(tmp_path / "w", {"a": 1}).__enter__()
        first.remove()
        with Workplace(tmp_path / "w", {"a": 1}) as second:  # in a new folder of that name
            first.remove()  # which is not the first one's to remove
            assert (tmp_path / "w" / "job.json").exists()
            (tmp_path / "w" / "x.zip").write_text("cut")
    assert second.folder.exists()


def test_names_that_differ_in_capitals_only_or_are_long(tmp_path):
    for name in ("Brats18_a_1", "Brats18_A_1", "Brats18_" + "x" * 220):
        write_flat(tmp_path / "s", name, draw(len(name)))
    convert(tmp_path / "s", tmp_path / "x.zip")
    assert len(ArchiveReader(tmp_path / "x.zip").info.patients) == 3


def test_contrasts_of_another_voxel_size_are_refused(tmp_path):
    write_flat(tmp_path / "s", "Brats18_X_1_1", draw())
    path = tmp_path / "s" / "Brats18_X_1_1" / "Brats18_X_1_1_t2.nii.gz"
    write_nifti(path, *turned(draw()["t2"], "LPS", (2, 2, 3)))
    output = convert(tmp_path / "s", tmp_path / "x.zip", expected=2)
    assert f"{path}: its voxels have 2×2×3 mm, those of Brats18_X_1_1_t1.nii.gz 1×1×1 mm" in output.replace("\n", " ")


def test_ones_behind_the_shape_and_one_contrast_in_a_file_of_its_own(tmp_path):
    volume, affine = turned(draw()["t1"], "LPS")
    for name, shape in (("a", volume.shape), ("b", (*volume.shape, 1)), ("c", (*volume.shape, 1, 1))):
        (tmp_path / "s").mkdir(exist_ok=True)
        write_nifti(tmp_path / "s" / f"{name}.nii.gz", volume.reshape(shape), affine)
        write_nifti(tmp_path / "s" / f"t1_{name}.nii.gz", volume.reshape(shape), affine)
    for pattern in ("{case}.nii.gz", "{contrast}_{case}.nii.gz"):
        convert(
            tmp_path / "s", tmp_path / "x.zip", "--contrasts", "t1", "--pattern", pattern, "--slices", "all", "--force"
        )
        reader = ArchiveReader(tmp_path / "x.zip")
        groups = [groups for name, groups in reader.by_patient().items() if name in "abc"]
        assert [len(group) for group in groups] == [10, 10, 10]
        for numbers in zip(*groups, strict=True):
            one, *others = (reader.read(i) for i in numbers)
            assert all(np.array_equal(one, other) for other in others)


def test_any_names_of_patients_for_a_release_that_is_named(tmp_path):
    write_flat(tmp_path, "Clinic-00002-000", draw(1, VALUES_OF["2023-gli"]), "-", GLI)
    with pytest.raises(UserError, match="no cases found of any release"):
        find_cases(tmp_path)
    (case,) = find_cases(tmp_path, release_of_name("2023-gli")).cases
    assert (case.name, case.patient) == ("Clinic-00002-000", "Clinic-00002")


def test_scaled_integers_and_sixteen_contrasts(tmp_path):
    """A header's slope and intercept count; what they make of integers is held as float32."""
    for n in range(16):
        image = nib.Nifti1Image(turned(draw()["t1"], "LPS")[0], turned(draw()["t1"], "LPS")[1])
        image.header.set_slope_inter(2, 1000 * n)
        (tmp_path / "s").mkdir(exist_ok=True)
        nib.save(image, tmp_path / "s" / f"a_c{n}.nii.gz")
    names = ",".join(f"c{n}" for n in range(16))
    found = find_cases(tmp_path / "s", describe_release(names, "{case}_{contrast}.nii.gz"))
    volumes = read_case(found.cases[0], found.release.schema)
    for n, contrast in enumerate(volumes.contrasts):
        assert contrast.dtype == np.float32
        np.testing.assert_allclose(contrast.T, nib.load(tmp_path / "s" / f"a_c{n}.nii.gz").get_fdata())


@pytest.mark.parametrize("axes", ["RAS", "LAS", "RPI", "PSR", "SLA"])
def test_files_saved_in_other_axes_on_the_same_grid(tmp_path, axes):
    """Programs turn volumes when they save them: the affine tells, and the archive is the same."""
    write_flat(tmp_path / "s", "Brats18_X_1_1", draw())
    convert(tmp_path / "s", tmp_path / "a.zip", "--slices", "all")
    for kind in ("seg", "t2"):
        path = tmp_path / "s" / "Brats18_X_1_1" / f"Brats18_X_1_1_{kind}.nii.gz"
        image = nib.load(path)
        wanted = nib.orientations.axcodes2ornt(axes)
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted)
        nib.save(image.as_reoriented(turn), path)
        assert nib.aff2axcodes(nib.load(path).affine) == tuple(axes)
    output = convert(tmp_path / "s", tmp_path / "b.zip", "--slices", "all")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes() and "affine of" not in output


def test_a_release_that_is_named_takes_no_cases_of_others(tmp_path):
    write_release(tmp_path, "2020")
    write_release(tmp_path, "2021")
    found = find_cases(tmp_path, release_of_name("2021"))
    assert [case.name for case in found.cases] == ["BraTS2021_00001", "BraTS2021_00002"]
    assert "left out: 2 cases of other releases, such as BraTS20_Training_001" in found.words


def test_a_pattern_that_can_be_read_in_two_ways(tmp_path):
    for name in ("X_01_v1", "Y_02_v1"):
        put(tmp_path / f"{name}_t1.nii.gz", draw()["t1"])
    with pytest.raises(
        UserError, match="fits X_01_v1_t1.nii.gz in two ways: patient X, visit 01_v1, contrast t1 or pat"
    ):
        find_cases(tmp_path, describe_release("t1", "{patient}_{visit}_{contrast}.nii.gz"))
    assert len(find_cases(tmp_path, describe_release("t1", "{case}_{contrast}.nii.gz")).cases) == 2


def test_a_contrast_without_contrast_is_remarked(tmp_path):
    volumes = draw()
    volumes["t2"][:] = 0
    write_flat(tmp_path / "s", "Brats18_X_1_1", volumes)
    output = convert(tmp_path / "s", tmp_path / "x.zip")
    assert re.search(r"note: t2 has one value in nearly all of the head +1 case +Brats18_X_1_1", output), output
    assert "note: t2 has one value in nearly all of the head: Brats18_X_1_1" in call("inspect", tmp_path / "x.zip")


def test_own_data_is_recorded(tmp_path):
    put(tmp_path / "s" / "a_0000.nii.gz", draw()["t1"])
    convert(tmp_path / "s", tmp_path / "x.zip", "--contrasts", "t1=0000", "--pattern", "{case}_{contrast}.nii.gz")
    options = ArchiveReader(tmp_path / "x.zip").info.made["options"]
    assert options["contrasts"] == {"t1": "0000"} and options["pattern"] == "{case}_{contrast}.nii.gz"

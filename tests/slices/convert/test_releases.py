"""Releases: every layout, descriptions of other data, and pitfalls of published files."""

import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from dnnlib import config
from dnnlib.errors import UserError
from helpers.commands import call, convert
from helpers.drawn import BRIGHT, MARKER, draw_head, turned, write_nifti
from helpers.layouts import CONTRASTS, GLI, VALUES_OF, draw, own, put, write_decathlon, write_flat, write_release
from slices.archive.reader import ArchiveReader
from slices.convert.recognition import find_cases
from slices.convert.releases import RELEASES, describe_release, release_of_name
from slices.convert.volumes import read_case
from slices.schema import BRATS


@pytest.mark.parametrize("name", [release.name for release in RELEASES])
def test_every_release(tmp_path, name):
    """A release is recognized if names allow. The same anatomy gives the same slices in every release."""
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
    """Facts of the reference: values, grids, and four tumor classes in 2024, so nine channels."""
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


def test_label_values_never_decide(tmp_path):
    """Data of 2023 with names of 2018: label value 3 is unknown there, and nothing is guessed."""
    write_flat(tmp_path / "source", "Brats18_X_1_1", draw(1, VALUES_OF["2023-gli"]))
    output = convert(tmp_path / "source", tmp_path / "x.zip", expected=2)
    assert "unknown label value 3; expected 0 and 1, 2, 4" in output and not (tmp_path / "x.zip").exists()


def test_another_grid_than_the_releases_is_remarked(tmp_path):
    write_release(tmp_path / "source", "2024-gli")
    output = convert(tmp_path / "source", tmp_path / "x.zip", "--release", "2024-gli")
    assert "the release's volumes have 182×218×182 voxels, these don't: is it another one?" in output


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
        train, test = (ArchiveReader(tmp_path / f"out{seed}" / f"{part}.zip") for part in ("train", "test"))
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


def test_odd_intensities_and_a_case_without_enhancing_tumor(tmp_path):
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
        away = np.abs(one[3] - other[3])  # a single voxel moves a percentile slightly
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


@pytest.mark.parametrize(
    "options, words",
    [
        (["--contrasts", "t1"], "--pattern is needed as well"),
        (["--labels", "a=1"], "--contrasts is needed as well"),
        (["--release", "2018", "--contrasts", "t1"], "leave one of them out"),
        (["--contrasts", "t1", "--pattern", "{kase}.nii.gz"], "{kase} is unknown; there are {case}, {patient}"),
        (["--contrasts", "t1", "--pattern", "{contrast}.nii.gz"], "needs {case} or {patient}"),
        (["--contrasts", "t1", "--pattern", "{case/{case}_{contrast}.nii.gz"], "a brace without its counterpart"),
        (["--contrasts", "t1", "--pattern", "{case}.mha"], "ends in .nii.gz or .nii"),
        (["--contrasts", "t1", "--pattern", "../{case}.nii.gz"], "without .."),
        (["--contrasts", "t1,t1", "--pattern", "{case}_{contrast}.nii.gz"], "a name comes twice"),
        (["--contrasts", "a=T1,b=T1", "--pattern", "{case}_{contrast}.nii"], "T1 would stand for two channels"),
        (
            ["--contrasts", "t1,x=seg", "--pattern", "{case}_{contrast}.nii", "--labels", "a=1"],
            "seg (where masks lie, unless --mask-pattern says otherwise) would stand for two channels",
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
        (["--contrasts", "t1", "--pattern", "{case}.nii.gz", "--labels", "a=1"], "add --mask-pattern"),
        (["--contrasts", "t1", "--pattern", "{case}.nii.gz", "--mask-pattern", "{case}.nii"], "needs --labels"),
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
    """Slope and intercept of the header are applied, and scaled integers become float32."""
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
    """Programs may turn axes when they save a volume. The affine says so, and the archive is the same."""
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


def test_several_values_of_a_class_and_values_to_ignore(tmp_path):
    """Values 1 and 4 are one class, and 2 is ignored: like masks in which these values were replaced."""
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
    assert list(config.to_json(BRATS)) == ["contrasts", "classes", "regions"]  # optional fields are not stored


@pytest.mark.parametrize(
    "labels, words",
    [
        ("a=3,b=1,a=5", "a comes twice; several values of one class are written a=3\\+5"),
        ("a=1,ignore=2+1", "1 stands for a and for ignore: lesion classes need different label values"),
        ("a=7+7", "7 comes twice"),
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

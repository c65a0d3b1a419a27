"""Reading volumes of drawn heads: files, orientation, the common grid, label maps, NaN."""

import gzip
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from dnnlib.errors import UserError
from helpers.cases import BRATS_2018, cut_only_case, read_only_case
from helpers.drawn import BRIGHT, DIRECTIONS, SHAPE, draw_head, turned, write_case, write_nifti
from slices.convert.releases import describe_release
from slices.nifti import read_nifti
from slices.schema import BRATS

# --- drawn data -----------------------------------------------------------------------------------------------------


def described(contrasts, labels=None):
    """A release in the layout of the drawn cases, with other contrasts and classes."""
    return describe_release(contrasts, "{case}/{case}_{contrast}.nii.gz", labels)


# --- cases ----------------------------------------------------------------------------------------------------------


def test_uncompressed_files_will_do(tmp_path):
    write_case(tmp_path, suffix=".nii")
    np.testing.assert_array_equal(read_only_case(tmp_path).contrasts[2].T, draw_head()["t2"])


# --- orientation ----------------------------------------------------------------------------------------------------


def write_header(path, volume, sform=None, qform=None):
    """Write a file with sform and qform. None: not stated. Zeros: stated, but unusable."""
    image = nib.Nifti1Image(volume, None)
    for name, affine in (("qform", qform), ("sform", sform)):
        if affine is not None:
            image.header[f"{name}_code"] = 1
            if affine.any():
                getattr(image.header, f"set_{name}")(affine, 1)
    if qform is not None and not qform.any():
        image.header["quatern_b"] = np.nan
    path.write_bytes(gzip.compress(image.to_bytes()))


NOTHING = np.zeros((4, 4))
LPS = turned(np.zeros(SHAPE), "LPS")[1]


def moved(affine, *mm):
    affine = affine.copy()
    affine[:3, 3] += mm
    return affine


def mirrored(affine, axis=0):
    """The affine of the same volume with one voxel axis flipped."""
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, SHAPE[axis] - 1
    return affine @ flip


def test_one_of_two_transforms_is_unusable(tmp_path):
    path = tmp_path / "x.nii.gz"
    volume = np.ones(SHAPE, np.int16)
    for transforms, remark in (
        ({"sform": NOTHING, "qform": LPS}, "sform can't be inverted, qform taken"),
        ({"sform": LPS, "qform": NOTHING}, "qform can't be inverted, sform taken"),
    ):
        write_header(path, volume, **transforms)
        found = read_nifti(path)
        np.testing.assert_allclose(found.place.affine, LPS, atol=1e-5)
        assert found.place.rival is None and found.remarks == (remark,)
    for transforms in ({"sform": NOTHING, "qform": NOTHING}, {"sform": NOTHING}, {"qform": NOTHING}):
        write_header(path, volume, **transforms)
        with pytest.raises(UserError) as caught:
            read_nifti(path)
        words = f"the header's {' and '.join(transforms)} can't be inverted, so the orientation is unknown"
        assert str(path) in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize("kinds", [["t1"], ["t2"], ["seg"], ["t1", "t1ce", "t2"], ["t1", "t1ce", "t2", "flair", "seg"]])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sform_and_qform_that_contradict_each_other(tmp_path, kinds, axis):
    folder, drawn = write_case(tmp_path), draw_head()
    expected = read_only_case(tmp_path)
    wrong = "".join("RAI"[axis] if n == axis else "LPS"[n] for n in range(3))
    for sform, qform, taken in ((mirrored(LPS, axis), LPS, "qform"), (LPS, mirrored(LPS, axis), "sform")):
        for kind in kinds:
            write_header(folder / f"case1_{kind}.nii.gz", drawn[kind], sform, qform)
        found = read_only_case(tmp_path)
        (remark,) = found.remarks
        names = [f"case1_{kind}.nii.gz" for kind in kinds]
        assert remark.startswith(
            ("all files" if len(kinds) == 5 else ", ".join(names)) + ": sform and qform contradict"
        )
        assert wrong in remark and "LPS" in remark
        if len(kinds) == 5:  # none of the files decides
            assert remark.endswith("; sform taken")
            continue
        assert remark.endswith(f"; {taken} taken, as in the other files")
        np.testing.assert_array_equal(found.labels, expected.labels)
        for contrast, same in zip(found.contrasts, expected.contrasts, strict=True):
            np.testing.assert_array_equal(contrast, same)


def test_other_contradictions_of_a_header(tmp_path):
    folder, drawn = write_case(tmp_path), draw_head()
    for qform, words in (
        (LPS @ np.diag((1, 1, 2, 1)), "the sform's voxels have 1×1×1 mm, those of the qform 1×1×2 mm"),
        (moved(LPS, 2, 0, 0), "the places differ by 2 mm"),
        (LPS[:, [1, 0, 2, 3]], "the sform's axes run to LPS, those of the qform to PLS"),
    ):
        write_header(folder / "case1_flair.nii.gz", drawn["flair"], LPS, qform)
        (remark,) = read_only_case(tmp_path).remarks
        assert remark.startswith("case1_flair.nii.gz: sform and qform contradict") and words in remark
    write_header(folder / "case1_flair.nii.gz", drawn["flair"], LPS, moved(LPS, 0.01, 0, 0))  # rounding
    assert read_only_case(tmp_path).remarks == ()
    write_header(folder / "case1_flair.nii.gz", drawn["flair"], moved(LPS, 2, 0, 0), moved(LPS, 3, 0, 0))
    with pytest.raises(UserError, match="flair.nii.gz: the places differ by 2 mm; sform and qform contradict"):
        read_only_case(tmp_path)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "LAS", "RPI", "PSR", "SLA", "AIL"])
def test_pictures_stand_nose_up_with_the_patients_left_on_the_right(tmp_path, axes):
    drawn = draw_head()
    write_case(tmp_path, axes=axes)
    volumes = read_only_case(tmp_path)
    for n, contrast in enumerate(BRATS.contrasts):
        for k in range(SHAPE[2]):
            np.testing.assert_array_equal(volumes.contrasts[n][k], drawn[contrast][:, :, k].T)
    np.testing.assert_array_equal(volumes.labels == 3, (drawn["seg"] == 4).T)
    rows, columns = np.nonzero(volumes.contrasts[0][5] == BRIGHT)
    assert rows.max() < 20 and columns.min() > 40  # the marker: top right
    assert volumes.shape == tuple(SHAPE[DIRECTIONS[letter][0]] for letter in axes)
    assert nib.aff2axcodes(volumes.affine) == tuple(axes)


def test_spacing_follows_the_axes(tmp_path):
    write_case(tmp_path, axes="SRA", spacing=(0.5, 0.75, 3.0))
    assert read_only_case(tmp_path).spacing == pytest.approx((3.0, 0.75, 0.5))


def test_an_oblique_volume_is_taken_along_its_nearest_axes(tmp_path):
    angle = np.deg2rad(12)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    folder = write_case(tmp_path)
    for kind, volume in draw_head().items():
        voxels, affine = turned(volume, "RAS", (1, 2, 3))
        affine[:3, :3] = tilt @ affine[:3, :3]
        write_nifti(folder / f"case1_{kind}.nii.gz", voxels, affine)
    volumes = read_only_case(tmp_path)
    np.testing.assert_array_equal(volumes.contrasts[0].T, draw_head()["t1"])
    assert volumes.spacing == pytest.approx((3, 2, 1))


# --- one grid -------------------------------------------------------------------------------------------------------


def test_files_of_different_shapes(tmp_path):
    folder = write_case(tmp_path)
    write_nifti(folder / "case1_t2.nii.gz", np.ones((60, 60, 9), np.int16))
    with pytest.raises(UserError, match=r"case1_t2.nii.gz: 60×60×9 voxels, but case1_t1.nii.gz has 60×60×10"):
        read_only_case(tmp_path)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "LAI", "PSR", "SLA"])
@pytest.mark.parametrize("tilt", [0, 20, 44.99], ids=["straight", "oblique", "between two axes"])
def test_files_in_other_axes_and_a_little_off(tmp_path, axes, tilt):
    """A label map from a program that stores other axes and rounds the place differently."""
    angle = np.deg2rad(tilt)
    tilted = np.eye(4)
    tilted[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    folder, drawn = write_case(tmp_path), draw_head()
    for kind, volume in drawn.items():
        write_nifti(folder / f"case1_{kind}.nii.gz", volume, tilted @ LPS)
    expected = read_only_case(tmp_path)
    assert expected.remarks == ()
    for kind in ("seg", "flair"):
        letters = nib.orientations.axcodes2ornt
        turn = nib.orientations.ornt_transform(letters("LPS"), letters(axes))
        voxels = nib.orientations.apply_orientation(drawn[kind], turn)
        affine = tilted @ LPS @ nib.orientations.inv_ornt_aff(turn, SHAPE)
        affine[:3, 3] += tilted[:3, :3] @ (0.3, -0.2, 0.25)
        write_nifti(folder / f"case1_{kind}.nii.gz", voxels, affine)
    found = read_only_case(tmp_path)
    (remark,) = found.remarks
    assert remark.startswith("case1_flair.nii.gz, case1_seg.nii.gz: lies 0.44 mm off case1_t1.nii.gz")
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.contrasts[3], expected.contrasts[3])


@pytest.mark.parametrize("kind", ["t2", "seg"])
def test_files_on_another_grid_are_refused(tmp_path, kind):
    folder, volume = write_case(tmp_path), draw_head()[kind]
    tilt = np.eye(4)
    tilt[:2, :2] = [[np.cos(0.05), -np.sin(0.05)], [np.sin(0.05), np.cos(0.05)]]
    for voxels, affine, words in (
        (volume, moved(LPS, 0, -0.5, 0), "the places differ by 0.5 mm"),
        (volume, moved(LPS, 3, 0, 0), "the places differ by 3 mm"),
        (volume, LPS @ np.diag((1, 1.1, 1, 1)), "its voxels have 1×1.1×1 mm, those of case1_t1.nii.gz 1×1×1 mm"),
        (volume, LPS @ tilt, "its axes are turned by 2.9° against those of case1_t1.nii.gz"),
        (*turned(volume, "RAS"), "its axes run to RAS, those of case1_t1.nii.gz to LPS, the places differ by 83.4 mm"),
        (volume, np.eye(4), "its axes run to RAS, those of case1_t1.nii.gz to LPS"),
    ):
        write_nifti(folder / f"case1_{kind}.nii.gz", voxels, affine)
        with pytest.raises(UserError, match=f"case1_{kind}.nii.gz: .*must share one grid") as caught:
            read_only_case(tmp_path)
        assert words in str(caught.value)


def test_a_header_that_knows_no_place_is_passed_over(tmp_path):
    """Same axes, but placed at 0, 0, 0 or beside the other files. BraTS has such label maps; their voxels are right."""
    folder, drawn = write_case(tmp_path), draw_head()
    expected = read_only_case(tmp_path).labels
    lost = np.diag((-1.0, -1, 1, 1))
    middle = lost.copy()
    middle[:3, 3] = -lost[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    for affine, words in (
        (lost, "differ by 13.5 mm"),
        (middle, "the places differ by"),
        (moved(LPS, 0, 500, 0), "differ by 500 mm"),
    ):
        write_nifti(folder / "case1_seg.nii.gz", drawn["seg"], affine)
        found = read_only_case(tmp_path)
        (remark,) = found.remarks
        assert remark.startswith("case1_seg.nii.gz: its header knows no place") and words in remark
        np.testing.assert_array_equal(found.labels, expected)


def test_an_identity_of_a_published_label_map_is_passed_over(tmp_path):
    """In a release, all files are stored on one grid. In other data, an identity affine may be true or made up."""
    folder, drawn = write_case(tmp_path), draw_head()
    expected = read_only_case(tmp_path).labels
    write_nifti(folder / "case1_seg.nii.gz", drawn["seg"], np.eye(4))
    found = read_only_case(tmp_path, replace(BRATS_2018, grid=SHAPE))
    assert "case1_seg.nii.gz: its header knows no place (its axes run to RAS, those of" in found.remarks[0]
    np.testing.assert_array_equal(found.labels, expected)
    with pytest.raises(UserError, match="case1_seg.nii.gz: its axes run to RAS"):
        read_only_case(tmp_path)


def test_the_odd_one_out_is_blamed(tmp_path):
    drawn = draw_head()
    for kind in ("t1", "t2"):  # the first of the contrasts, or another
        write_case(tmp_path / kind)
        folder = tmp_path / kind / "case1"
        write_header(folder / f"case1_{kind}.nii.gz", drawn[kind])
        bare, other = f"case1_{kind}.nii.gz", "case1_t1ce.nii.gz" if kind == "t1" else "case1_t1.nii.gz"
        for content, words in (
            ((drawn[kind],), f"its header states no orientation; the axes of {other} run to LPS"),
            ((drawn[kind], LPS @ np.diag((2, 1, 1, 1))), "its voxels have 2×1×1 mm"),
            ((drawn[kind][:, :, 1:], LPS), f"60×60×9 voxels, but {other} has 60×60×10"),
        ):
            write_header(folder / f"case1_{kind}.nii.gz", *content)
            with pytest.raises(UserError, match=f"{bare}: ") as caught:
                read_only_case(tmp_path / kind)
            assert words in str(caught.value)
    folder = write_case(tmp_path / "most")  # here most files lack what one file has
    for kind in ("t1", "t1ce", "t2"):
        write_header(folder / f"case1_{kind}.nii.gz", drawn[kind])
    with pytest.raises(UserError, match="give case1_t1.nii.gz the header of this file") as caught:
        read_only_case(tmp_path / "most")
    assert "case1_flair.nii.gz: its axes run to LPS" in str(caught.value)
    write_case(tmp_path / "mask")
    write_header(tmp_path / "mask" / "case1" / "case1_seg.nii.gz", drawn["seg"])
    assert read_only_case(tmp_path / "mask").remarks == (
        "case1_seg.nii.gz: its header states no orientation, voxels taken as on the grid of case1_t1.nii.gz",
    )


def test_a_header_without_orientation_is_remarked(tmp_path):
    folder = write_case(tmp_path)
    image = nib.load(folder / "case1_t1.nii.gz")
    image.header.set_sform(None, 0)
    image.header.set_qform(None, 0)
    voxels, header = np.asarray(image.dataobj), image.header
    nib.save(nib.Nifti1Image(voxels, None, header), folder / "case1_t1.nii.gz")
    volumes = read_only_case(tmp_path, described("t1"))
    assert volumes.remarks == ("no orientation in the header, axes assumed to run to L, A, S",)
    np.testing.assert_array_equal(volumes.contrasts[0].T[:, ::-1], draw_head()["t1"])


# --- label maps -----------------------------------------------------------------------------------------------------


def test_label_maps_of_floats(tmp_path):
    path = write_case(tmp_path) / "case1_seg.nii.gz"
    expected = read_only_case(tmp_path).labels
    labels = draw_head()["seg"].astype(np.float64)
    for noise in (0, 1e-6, -1e-40, 4e-6):
        write_nifti(path, labels + noise)
        np.testing.assert_array_equal(read_only_case(tmp_path).labels, expected)
    for value, words in (
        (1.25, "holds whole numbers, but this one has 1.25"),
        (3.999, "holds whole numbers, but this one has 3.999"),
        (3, "unknown label value 3; expected 0 and"),
    ):
        labels[30, 30, 5] = value
        write_nifti(path, labels)
        with pytest.raises(UserError, match=f"case1_seg.nii.gz: .*{words}"):
            read_only_case(tmp_path)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32])
def test_label_maps_of_scaled_integers(tmp_path, dtype):
    """Floats saved as scaled integers: each value is within half a step of a whole number."""
    path, labels = write_case(tmp_path) / "case1_seg.nii.gz", draw_head()["seg"].astype(np.float64)
    expected = read_only_case(tmp_path).labels
    affine = nib.load(path).affine

    def save(values):
        image = nib.Nifti1Image(values, affine)
        image.set_data_dtype(dtype)
        nib.save(image, path)
        assert nib.load(path).dataobj.slope not in (0, 1)

    save(labels)
    np.testing.assert_array_equal(read_only_case(tmp_path).labels, expected)
    labels[30, 30, 5] = 1.37  # as interpolation makes it
    save(labels)
    with pytest.raises(UserError, match="holds whole numbers, but this one has 1.3"):
        read_only_case(tmp_path)


@pytest.mark.parametrize("slope, inter", [(0.5, 0), (0.5, 0.25), (1, 0.5), (1e-30, 0), (0.75, 0)])
def test_coarse_or_absurd_scales_make_no_labels(tmp_path, slope, inter):
    path = write_case(tmp_path) / "case1_seg.nii.gz"
    image = nib.Nifti1Image(draw_head()["seg"], LPS)
    content = bytearray(image.to_bytes())
    content[112:120] = np.float32((slope, inter)).tobytes()
    path.write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match="case1_seg.nii.gz: a label map holds whole numbers"):
        read_only_case(tmp_path)


def test_other_schemas(tmp_path):
    drawn = draw_head()
    write_case(tmp_path, volumes=drawn | {"seg": (drawn["seg"] == 2).astype(np.uint8)})
    volumes = read_only_case(tmp_path, described("t2,t1,flair", labels="MS=1"))
    np.testing.assert_array_equal(volumes.contrasts[1].T, drawn["t1"])
    np.testing.assert_array_equal(volumes.labels.T, drawn["seg"] == 2)
    (tmp_path / "case1" / "case1_seg.nii.gz").unlink()
    result = cut_only_case(tmp_path, "all", described("flair"), resolution=64)
    assert result.contrasts.shape == (10, 1, 64, 64) and not result.classes.any()


# --- NaN ------------------------------------------------------------------------------------------------------------


def write_with_nan(folder, kind, volume, nan):
    write_nifti(folder / f"case1_{kind}.nii.gz", np.where(nan, np.nan, volume).astype(np.float32), LPS)


def test_nan_outside_the_head_is_background(tmp_path):
    folder, drawn = write_case(tmp_path), draw_head()
    expected = cut_only_case(tmp_path, "all", resolution=64)
    for kind, volume in drawn.items():
        write_with_nan(folder, kind, volume, volume == 0)
    found = cut_only_case(tmp_path, "all", resolution=64)
    np.testing.assert_array_equal(found.contrasts, expected.contrasts)
    np.testing.assert_array_equal(found.classes, expected.classes)
    outside, unlabeled = np.count_nonzero(drawn["t1"] == 0), np.count_nonzero(drawn["seg"] == 0)
    assert found.remarks == (
        "case1_t1.nii.gz, case1_t1ce.nii.gz, case1_t2.nii.gz, case1_flair.nii.gz: "
        f"{outside} voxels of NaN taken as background",
        f"case1_seg.nii.gz: {unlabeled} voxels of NaN taken as background",
    )


@pytest.mark.parametrize("background", [0, -1000, 37.5])
def test_nan_beside_a_background_of_another_kind(tmp_path, background):
    """NaN as after resampling to another grid, where the field of view ends."""
    folder, drawn = write_case(tmp_path), draw_head()
    expected = cut_only_case(tmp_path, "all", resolution=64).contrasts
    nan = np.zeros(SHAPE, bool)
    nan[:5], nan[:, -2:], nan[:, :, 0] = True, True, drawn["t1"][:, :, 0] == 0
    for kind in BRATS.contrasts[1:]:
        write_with_nan(folder, kind, np.where(drawn[kind], drawn[kind], background), nan)
    np.testing.assert_array_equal(cut_only_case(tmp_path, "all", resolution=64).contrasts, expected)


def test_nan_of_normalized_intensities(tmp_path):
    folder, drawn = write_case(tmp_path), draw_head()
    expected = cut_only_case(tmp_path, "all", resolution=64).contrasts
    for kind in BRATS.contrasts:
        inside = drawn[kind] > 0
        scores = (drawn[kind] - drawn[kind][inside].mean()) / drawn[kind][inside].std()
        write_with_nan(folder, kind, scores, ~inside)
    found = cut_only_case(tmp_path, "all", resolution=64).contrasts
    assert ((found > 0) == (expected > 0)).all() and np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["t1", "flair", "seg"])
def test_nan_inside_the_head_is_an_error(tmp_path, kind):
    folder, drawn = write_case(tmp_path), draw_head()
    nan = drawn["t1"] == 0
    nan[25:27, 30, 4] = True
    write_with_nan(folder, kind, drawn[kind], nan)
    with pytest.raises(UserError, match=f"case1_{kind}.nii.gz: NaN in the head, in 2 voxels"):
        cut_only_case(tmp_path)
    for slices in (slice(5, None), slice(5, 6)):  # the field of view ends in the head, or a slice is lost
        nan = drawn["t1"] == 0
        nan[:, :, slices] = True
        write_with_nan(folder, kind, drawn[kind], nan)
        with pytest.raises(UserError, match=rf"case1_{kind}.nii.gz: NaN in the head, in \d+ voxels"):
            cut_only_case(tmp_path)


def test_nan_at_the_edge_of_the_head(tmp_path):
    """NaN as after skull-stripping each contrast by itself."""
    folder, drawn = write_case(tmp_path), draw_head()
    edge = (drawn["t1"] > 0) & ~ndimage.binary_erosion(drawn["t1"] > 0, iterations=1, border_value=1)
    write_with_nan(folder, "t2", drawn["t2"], (drawn["t1"] == 0) | edge)
    remarks = cut_only_case(tmp_path).remarks
    assert f"case1_t2.nii.gz: {edge.sum()} voxels of NaN at the edge of the head" in remarks

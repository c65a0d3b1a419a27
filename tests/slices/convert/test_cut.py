"""Cutting slices from drawn heads: gray levels, head, choice of slices, and remarks."""

import nibabel as nib
import numpy as np
import pytest

from dnnlib.errors import UserError
from helpers.cases import BRATS_2018, cut_only_case
from helpers.drawn import SHAPE, draw_head, turned, write_case
from slices.convert.cut import cut_case
from slices.convert.options import ConvertOptions
from slices.convert.recognition import find_cases
from slices.schema import BRATS

DRAWN = np.stack([draw_head()[contrast].T for contrast in BRATS.contrasts]).astype(np.float32)
INSIDE = DRAWN[0] > 0  # [S, P, L]


def test_windows_are_percentiles_of_the_head(tmp_path):
    write_case(tmp_path)
    result = cut_only_case(tmp_path, resolution=64)
    for contrast, window in result.volume.windows.items():
        values = draw_head()[contrast][INSIDE.T].astype(np.float64)
        assert window == pytest.approx(tuple(np.percentile(values, (0.5, 99.5))), rel=1e-12)


def test_a_slice_that_fits_is_padded_and_nothing_else(tmp_path):
    drawn = draw_head()
    write_case(tmp_path)
    result = cut_only_case(tmp_path, "all", resolution=64)
    assert result.contrasts.shape == (10, 4, 64, 64) and result.contrasts.dtype == np.uint8
    middle = result.contrasts[:, :, 2:62, 2:62]
    for n, contrast in enumerate(BRATS.contrasts):
        low, high = result.volume.windows[contrast]
        pictures = drawn[contrast].T.astype(np.float64)  # [S, P, L]
        expected = np.where(INSIDE, np.rint(1 + 254 * np.clip((pictures - low) / (high - low), 0, 1)), 0)
        np.testing.assert_array_equal(middle[:, n], expected)
    assert result.contrasts.sum() == middle.sum()  # the frame is empty
    np.testing.assert_array_equal(result.classes[:, 2:62, 2:62] == 3, drawn["seg"].T == 4)
    assert result.classes.sum() == result.classes[:, 2:62, 2:62].sum()


def test_reduced_slices_are_block_means_rounded_once(tmp_path):
    write_case(tmp_path)
    fine = cut_only_case(tmp_path, "all", resolution=64)
    coarse = cut_only_case(tmp_path, "all", resolution=32, fov=64.0)
    levels, covered = np.empty((10, 4, 60, 60)), INSIDE
    for n, contrast in enumerate(BRATS.contrasts):
        low, high = fine.volume.windows[contrast]
        share = np.clip((DRAWN[n].astype(np.float64) - low) / (high - low), 0, 1)
        levels[:, n] = np.where(INSIDE, 1 + 254 * share, 0)
    blocks = np.pad(levels, [(0, 0), (0, 0), (2, 2), (2, 2)]).reshape(10, 4, 32, 2, 32, 2).mean(axis=(3, 5))
    covered = np.pad(covered, [(0, 0), (2, 2), (2, 2)]).reshape(10, 32, 2, 32, 2).mean(axis=(2, 4)) >= 0.5
    expected = np.where(covered[:, None], np.clip(np.rint(blocks), 1, 255), 0)
    np.testing.assert_array_equal(coarse.contrasts, expected)
    # If voxels were rounded before averaging, some values would differ.
    twice = fine.contrasts.reshape(10, 4, 32, 2, 32, 2).mean(axis=(3, 5))
    assert (np.rint(twice) != expected)[covered[:, None].repeat(4, 1)].any()


def test_the_head_may_be_said(tmp_path):
    drawn = draw_head()
    folder = write_case(tmp_path, "a")
    mask = np.zeros(SHAPE, np.uint8)
    mask[10:50, 5:40, 2:8] = 7
    image = nib.Nifti1Image(*turned(mask, "LPS"))
    nib.save(image.as_reoriented([[1, -1], [2, 1], [0, -1]]), folder / "a_brain.nii.gz")  # with other axes

    def shown(head):
        options = ConvertOptions(resolution=64, head=head)
        (case,) = find_cases(tmp_path, BRATS_2018, options.head_rule.masks).cases
        cut = cut_case(case, "all", BRATS, options)
        return cut, cut.contrasts[:, :, 2:62, 2:62] > 0

    assert shown("all")[1].all()
    above = np.any([drawn[contrast] > 550 for contrast in BRATS.contrasts], axis=0).T
    np.testing.assert_array_equal(shown("550")[1], above[:, None].repeat(4, 1))
    cut, masked = shown("{case}/{case}_brain.nii.gz")
    np.testing.assert_array_equal(masked, (mask.T > 0)[:, None].repeat(4, 1))
    low = np.percentile(drawn["t2"][mask > 0].astype(float), 0.5)
    assert cut.volume.windows["t2"][0] == low
    outside = np.count_nonzero(drawn["seg"][mask == 0])
    assert cut.counted == {"lesion voxels outside the head": outside} and outside > 0
    assert cut.lost == {"lesion voxels outside the head": round(outside / np.count_nonzero(drawn["seg"]), 4)}
    with pytest.raises(UserError, match="--head 100000: no voxel is above that; the highest value is 1500"):
        shown("1e5")
    for wrong in ("brain", "nan", "", "{case", "{contrast}.nii.gz"):
        with pytest.raises(UserError, match="--head"):
            ConvertOptions(head=wrong)


def test_a_few_lesion_voxels_beyond_the_rim_are_no_news(tmp_path):
    drawn = draw_head()
    drawn["seg"][0, :6, 5] = 2  # of 678
    write_case(tmp_path, "few", drawn)
    assert cut_only_case(tmp_path, resolution=64).lost == {}
    drawn["seg"][0, :20, 5] = 2
    write_case(tmp_path / "more", "more", drawn)
    assert cut_only_case(tmp_path / "more", resolution=64).counted == {"lesion voxels outside the head": 20}


def test_what_the_field_of_view_cuts_off_is_told(tmp_path):
    drawn = draw_head()
    drawn["seg"][:] = 0
    drawn["seg"][20:40, 12:16, 4] = 1  # in voxels along P: the square of 32 mm begins at 14
    write_case(tmp_path, volumes=drawn)
    cut = cut_only_case(tmp_path, resolution=32, fov=32.0)
    assert cut.counted == {"lesion voxels outside the field of view": 40}
    assert cut.lost == {"lesion voxels outside the field of view": 0.5} and cut.indices == (4,)
    assert cut_only_case(tmp_path, resolution=16, fov=33.0).counted == {"lesion voxels outside the field of view": 30}
    assert cut_only_case(tmp_path, resolution=64).lost == {} == cut_only_case(tmp_path, resolution=32).lost


# --- slices ---------------------------------------------------------------------------------------------------------


def test_choices(tmp_path):
    drawn = draw_head()
    for volume in drawn.values():
        volume[:, :, 0] = 0
    write_case(tmp_path, volumes=drawn)
    tumor = cut_only_case(tmp_path, "tumor", resolution=64)
    assert tumor.indices == (3, 4, 5, 6) and tumor.skipped == {"no tumor": 6}
    brain = cut_only_case(tmp_path, "brain", resolution=64)
    assert brain.indices == tuple(range(1, 10)) and brain.skipped == {"no brain": 1}
    everything = cut_only_case(tmp_path, "all", resolution=64)
    assert everything.indices == tuple(range(10)) and everything.skipped == {}
    np.testing.assert_array_equal(everything.contrasts[3:7], tumor.contrasts)


def test_tumor_pixels_are_counted_in_the_archive(tmp_path):
    drawn = draw_head()
    drawn["seg"][:] = 0
    drawn["seg"][20:24, 20:24, 4] = 1  # 16 voxels, 4 pixels at half the resolution
    drawn["seg"][20, 20, 6] = 1  # a quarter of a pixel: none
    write_case(tmp_path, volumes=drawn)
    assert cut_only_case(tmp_path, resolution=64).indices == (4, 6)
    assert cut_only_case(tmp_path, resolution=64, min_tumor_pixels=16).indices == (4,)
    assert cut_only_case(tmp_path, resolution=32, fov=64.0, min_tumor_pixels=4).indices == (4,)
    result = cut_only_case(tmp_path, resolution=32, fov=64.0, min_tumor_pixels=5)
    assert result.indices == () and result.contrasts.shape == (0, 4, 32, 32)
    assert result.skipped == {"no tumor": 9, "fewer than 5 tumor pixels": 1}


def test_the_volume_is_described_as_the_file_has_it(tmp_path):
    write_case(tmp_path, axes="RSA", spacing=(1, 1.5, 2))
    result = cut_only_case(tmp_path, resolution=32)
    assert result.volume.patient == "case1" and result.volume.shape == (60, 10, 60)
    np.testing.assert_array_equal(result.volume.affine, turned(np.zeros(SHAPE), "RSA", (1, 1.5, 2))[1])
    assert result.indices == (3, 4, 5, 6)  # counted from the feet, along whichever axis of the file

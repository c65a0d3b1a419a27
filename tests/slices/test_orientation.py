"""Orientation: file axes to anatomical axes and back, for all 48 orientations."""

import nibabel as nib
import numpy as np
import pytest

from helpers.drawn import ALL_AXES, turned
from slices.orientation import LPS, Orientation

VOLUME = np.arange(2 * 3 * 4).reshape(2, 3, 4)  # [L, P, S]


@pytest.mark.parametrize("axes", ALL_AXES)
def test_there_and_back(axes):
    voxels, affine = turned(VOLUME, axes, (1.0, 1.5, 2.0))
    orientation = Orientation.of(affine)
    np.testing.assert_array_equal(orientation.to_lps(voxels), VOLUME)
    np.testing.assert_array_equal(orientation.to_file(VOLUME), voxels)
    assert orientation.shape_lps(voxels.shape) == VOLUME.shape
    lps = orientation.affine_lps(affine, voxels.shape)
    assert nib.aff2axcodes(lps) == ("L", "P", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(lps), (1.0, 1.5, 2.0))
    np.testing.assert_array_equal(Orientation.of(lps).turn, LPS.turn)
    # A voxel has the same place in mm, by the indices and the affine of either.
    where = np.argwhere(voxels == VOLUME[1, 2, 1])[0]
    np.testing.assert_allclose(nib.affines.apply_affine(lps, (1, 2, 1)), nib.affines.apply_affine(affine, where))


@pytest.mark.parametrize("axes", ALL_AXES)
def test_planes_are_where_slices_lie_in_the_file(axes):
    voxels, affine = turned(VOLUME, axes)
    axis, planes = Orientation.of(affine).planes([0, 1, 3], 4)
    for index, plane in zip([0, 1, 3], planes, strict=True):
        assert set(voxels.take(plane, axis).ravel()) == set(VOLUME[..., index].ravel())

"""Voxels to pixels (area weights, means, majorities), and back."""

import nibabel as nib
import numpy as np
import pytest

from dnnlib.errors import UserError
from helpers.drawn import ALL_AXES, turned
from slices.geometry import PixelGrid, VoxelGrid, area_weights, pixel_size
from slices.orientation import LPS, Orientation


def grid_for(sides, spacing, resolution, fov=None):
    """The pixel grid without its fast path for moved voxels, and the edge of a pixel in mm."""
    pixel = pixel_size(sides, spacing, resolution, fov)
    return PixelGrid(*(area_weights(n, mm, resolution, pixel) for n, mm in zip(sides, spacing, strict=True))), pixel


@pytest.mark.parametrize(
    "sides, resolution, fov, corner",
    [((240, 240), 256, None, (8, 8)), ((218, 181), 256, None, (19, 37)), ((60, 50), 16, 16.0, (-22, -17))],
)
def test_pixels_of_the_voxels_size_are_voxels(sides, resolution, fov, corner):
    picture = np.random.default_rng(0).normal(size=sides)
    grid, pixel = grid_for(sides, (1.0, 1.0), resolution, fov)
    found, expected = grid.mean(picture), np.zeros((resolution, resolution))
    for row in range(resolution):
        for column in range(resolution):
            y, x = row - corner[0], column - corner[1]
            if 0 <= y < sides[0] and 0 <= x < sides[1]:
                expected[row, column] = picture[y, x]
    assert pixel == 1
    np.testing.assert_array_equal(found, expected)


def test_a_spacing_stored_in_float32_is_what_was_meant():
    grid, _ = grid_for((240, 240), (0.9999999403953552, 1.0), 256)
    assert set(np.unique(grid.rows.toarray())) == {0, 1} == set(np.unique(grid.columns.toarray()))


def test_weights_are_the_shares_of_area():
    for n, spacing, resolution, pixel in (
        (240, 1.0, 64, 3.75),
        (61, 1.0, 16, 2.3),
        (50, 0.7, 32, 1.4),
        (33, 1.3, 16, 3.0),
    ):
        weights = area_weights(n, spacing, resolution, pixel).toarray()
        assert (weights >= 0).all() and weights.sum(axis=1).max() <= 1 + 1e-12
        # Computed differently: cut the length into thin strips, and count the voxel and the pixel that each lies in.
        strips = (np.arange(400_000) + 0.5) / 400_000 * resolution * pixel - resolution * pixel / 2
        voxel, owner = (
            np.floor(strips / spacing + n / 2).astype(int),
            np.repeat(np.arange(resolution), 400_000 // resolution),
        )
        real = (voxel >= 0) & (voxel < n)
        counted = np.zeros((resolution, n))
        np.add.at(counted, (owner[real], voxel[real]), resolution / 400_000)
        np.testing.assert_allclose(weights, counted, atol=2e-3)


@pytest.mark.parametrize(
    "sides, spacing, resolution", [((240, 240), (1, 1), 64), ((61, 47), (1, 1), 32), ((120, 240), (2, 1), 64)]
)
def test_area_means_conserve_the_sum(sides, spacing, resolution):
    picture = np.random.default_rng(0).uniform(size=sides)
    grid, pixel = grid_for(sides, spacing, resolution)
    assert grid.mean(picture).sum() * pixel**2 == pytest.approx(picture.sum() * spacing[0] * spacing[1], rel=1e-9)


def test_voxels_that_are_not_square_become_square_pixels():
    # A disc with a radius of 20 mm on voxels of 2 mm × 0.5 mm is round in the archive.
    p, l = np.meshgrid((np.arange(40) - 19.5) * 2, (np.arange(160) - 79.5) * 0.5, indexing="ij")
    grid, pixel = grid_for((40, 160), (2.0, 0.5), 32)
    assert pixel == 2.5
    shares = grid.mean(p**2 + l**2 < 20**2)
    assert shares.sum() * pixel**2 == pytest.approx(np.pi * 20**2, rel=0.02)
    np.testing.assert_allclose(shares.sum(axis=0), shares.sum(axis=1), atol=0.7)
    # Padding keeps the size of the longer edge and averages over shorter ones: pixels of 2 mm.
    assert grid_for((40, 160), (2.0, 0.5), 64)[1] == 2.0


def test_majority_is_the_class_of_largest_area():
    rng = np.random.default_rng(0)
    classes = np.kron(rng.integers(0, 4, (12, 10)), np.ones((4, 5), int)).astype(np.uint8)  # [48, 50]
    for resolution, fov, scale in ((16, 48.0, 3), (32, None, 1.5625), (16, 40.0, 2.5)):
        grid, pixel = grid_for((48, 50), (1.0, 1.0), resolution, fov)
        assert pixel == pytest.approx(scale if fov else 50 / resolution)
        # Each voxel is cut into 16×16 cells, so that every pixel consists of whole cells.
        fine = np.kron(classes, np.ones((16, 16), np.uint8))
        cells = round(pixel * 16)
        edge = cells * resolution
        canvas = np.zeros((edge, edge), np.uint8)
        # Per axis a pair (place in the canvas, cells to take); zip(*…) makes two tuples of slices of them.
        put, take = zip(*(_centered(edge, n * 16) for n in (48, 50)), strict=True)
        canvas[put] = fine[take]
        counts = np.stack(
            # [R, cells, R, cells]: the cells of each pixel are on axes 1 and 3.
            [(canvas == c).reshape(resolution, cells, resolution, cells).sum(axis=(1, 3)) for c in range(4)]
        )
        np.testing.assert_array_equal(grid.majority(classes, 4), counts.argmax(axis=0))  # equal areas: lower class


def _centered(outer, inner):
    """(slice of `outer` cells, slice of `inner` cells) that share their middle."""
    shift = (outer - inner) // 2
    assert (outer - inner) % 2 == 0
    if shift >= 0:
        return slice(shift, shift + inner), slice(0, inner)
    return slice(0, outer), slice(-shift, outer - shift)


def test_nothing_is_enlarged():
    with pytest.raises(UserError) as caught:
        pixel_size((240, 240), (1.0, 1.0), 256, 128.0)
    assert "pixels of 0.5 mm" in str(caught.value)
    assert "choose --fov 256 or more, or --resolution 128 or less" in str(caught.value)
    assert pixel_size((240, 240), (1.0, 1.0), 128, 128.0) == 1
    with pytest.raises(UserError, match=r"choose --fov 16 or more$"):
        pixel_size((240, 240), (1.0, 1.0), 16, 10.0)
    with pytest.raises(UserError, match="a voxel has 2 mm"):
        pixel_size((240, 240), (1.0, 2.0), 64, 100.0)


# --- and back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ALL_AXES)
@pytest.mark.parametrize("resolution", [32, 64], ids=["cropped", "padded"])
def test_pixels_that_are_voxels_come_back(axes, resolution):
    """Voxels -> pixels -> voxels -> pixels, for files with any axes: visible voxels come back, others are 0."""
    volume = np.random.default_rng(0).integers(1, 255, (47, 60, 3)).astype(np.uint8)  # [L, P, S]
    voxels, affine = turned(volume, axes, (1.0, 1.0, 2.5))
    pixels = PixelGrid.of((60, 47), (1.0, 1.0), resolution, 1.0)
    grid = VoxelGrid.of(voxels.shape, affine, resolution, 1.0)
    pictures = [pixels.moved(volume[..., k].T) for k in range(3)]
    back = np.zeros(grid.shape, np.uint8)
    for k, picture in enumerate(pictures):
        grid.put(picture, back, k)
    np.testing.assert_array_equal(back, np.where(pixels.shown().T[..., None] > 0, volume, 0))
    np.testing.assert_array_equal(grid.affine, affine)
    assert grid.to_file(back).shape == voxels.shape
    again = Orientation.of(affine).to_lps(grid.to_file(back))
    for k, picture in enumerate(pictures):
        np.testing.assert_array_equal(pixels.moved(again[..., k].T), picture)


@pytest.mark.parametrize("spacing, pixel", [((1.0, 1.0), 2.5), ((1.5, 1.0), 1.5), ((0.7, 1.3), 2.0)])
def test_pixels_that_are_no_voxels_become_a_grid_of_their_own(spacing, pixel):
    """The position of a pixel is the mean position of the voxels under it.

    A voxel counts with the position of its center, so the means may be wrong by up to 0.1 mm. An error of half a voxel
    would be 0.35 mm or more.
    """
    _, affine = turned(np.zeros((47, 60, 3)), "RSA", (spacing[1], spacing[0], 2.0))
    orientation = Orientation.of(affine)
    lps = orientation.affine_lps(affine, (47, 3, 60))
    grid = VoxelGrid.of((47, 3, 60), affine, 16, pixel)
    assert grid.shape == (16, 16, 3) and grid.words == f"resampled to {pixel:g} mm pixels"
    np.testing.assert_array_equal(grid.orientation.turn, LPS.turn)

    def along(affine, axis, shape):
        """Position in mm along an axis of the world, of every voxel of a slice: [L, P]."""
        places = np.stack([*np.meshgrid(*map(np.arange, shape), indexing="ij"), np.zeros(shape)], axis=-1)
        return nib.affines.apply_affine(affine, places)[..., axis]

    pixels = PixelGrid.of((60, 47), spacing, 16, pixel)
    inside = pixels.mean(np.ones((60, 47))) > 1 - 1e-9
    assert inside.any()
    for axis in (0, 1):
        found = pixels.mean(along(lps, axis, (47, 60)).T)
        np.testing.assert_allclose(found[inside], along(grid.affine, axis, (16, 16)).T[inside], atol=0.1)


@pytest.mark.parametrize("axes", ["LPS", "LAS", "SRP", "AIR"])
@pytest.mark.parametrize(
    "spacing, pixel, resolution",
    [((1.0, 1.0), 2.5, 16), ((1.5, 1.0), 1.5, 64), ((0.7, 1.3), 2.0, 32)],
    ids=["smaller picture", "one axis alike", "oblong voxels"],
)
def test_a_voxel_of_the_source_takes_the_pixel_at_its_place(axes, spacing, pixel, resolution):
    """Places are compared in mm: an export writes the pixels as voxels, with an affine of their own."""
    source, affine = turned(np.zeros((47, 60, 3)), axes, (spacing[1], spacing[0], 2.0))
    grid = VoxelGrid.of_source(source.shape, affine, resolution, pixel)
    picture = np.random.default_rng(0).integers(1, 255, (resolution, resolution)).astype(np.uint8)
    volume = np.zeros(grid.shape, np.uint8)
    grid.put(picture, volume, 1)
    found = grid.to_file(volume)
    assert found.shape == source.shape and not grid.exact and "nearest" in grid.words
    np.testing.assert_array_equal(grid.affine, affine)

    pixels = np.linalg.inv(VoxelGrid.of(source.shape, affine, resolution, pixel).affine) @ affine
    places = nib.affines.apply_affine(pixels, np.moveaxis(np.indices(source.shape), 0, -1))  # of voxels, in pixels
    # A center on the edge of two pixels counts to the second.
    l, p, s = np.moveaxis(np.floor((places + 0.5).round(5)).astype(int), -1, 0)
    inside = (np.minimum(l, p) >= 0) & (np.maximum(l, p) < resolution) & (s == 1)
    expected = np.where(inside, picture[p.clip(0, resolution - 1), l.clip(0, resolution - 1)], 0)
    np.testing.assert_array_equal(found, expected)
    everything = np.ones((3, 60, 47), bool)
    assert grid.count_unfilled(everything) == found.size - 3 * np.count_nonzero(found)

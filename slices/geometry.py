"""Voxels ↔ pixels: the only file that knows where an archive's pixels lie in a volume.

An archive has R×R square pixels in every slice. They share their center with the voxels of the volume. `PixelGrid`
resamples pictures of a volume to pixels; `VoxelGrid` puts pixels back into a volume. Voxel axes run along L, P, S here:
to the patient's left, back and head. A picture of a volume is [P, L].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import sparse

from dnnlib.errors import UserError
from slices.affine import has_axes
from slices.orientation import LPS, Orientation

SMALLEST_RESOLUTION = 16  # pixels along an edge
SAME = 1e-4  # lengths that differ by less than this share are one length: affines are stored as float32


def pixel_size(
    sides: tuple[int, int], spacing: tuple[float, float], resolution: int, fov: float | None = None
) -> float:
    """Edge of an archive's square pixels, in mm.

    sides, spacing: number of voxels, and mm between them, along P and L. Without `fov` the whole slice is shown, and
    pixels are as large as voxels if the slice fits. Raises UserError if pixels would be smaller than voxels, because
    slices are never enlarged.
    """
    voxel = max(spacing)
    if fov is None:
        return max(voxel, *(n * mm / resolution for n, mm in zip(sides, spacing, strict=True)))
    if fov / resolution < voxel * (1 - SAME):
        # The largest power of two whose pixels are not smaller than voxels.
        fitting = 1 << max(0, int(fov / voxel * (1 + SAME)).bit_length() - 1)
        smaller = f", or --resolution {fitting} or less" if fitting >= SMALLEST_RESOLUTION else ""
        raise UserError(
            f"--fov {fov:g} at --resolution {resolution} asks for pixels of {fov / resolution:.3g} mm, but a voxel has "
            f"{voxel:.3g} mm: choose --fov {np.ceil(resolution * voxel):g} or more{smaller}"
        )
    return fov / resolution


def stack_spacing(shape: Sequence[int], affine: np.ndarray, pixel: float) -> tuple[float, float, float] | None:
    """Millimeters between the slices, the rows and the columns of a volume's stacked slices.

    shape, affine: of the volume's file, in its axes. pixel: edge of the archive's square pixels. The distance of two
    slices is the length of a voxel: in an oblique volume too, axes count as perpendicular. None: the affine doesn't
    tell.
    """
    with np.errstate(all="ignore"):
        if not has_axes(affine):
            return None
        distance = nib.affines.voxel_sizes(Orientation.of(affine).affine_lps(affine, shape))[2]
    return float(distance), float(pixel), float(pixel)


def is_same_length(a: float, b: float) -> bool:
    """Whether two lengths are equal but for rounding."""
    return abs(a / b - 1) < SAME


# --- one axis -------------------------------------------------------------------------------------------------------


def area_weights(n: int, spacing: float, resolution: int, pixel: float) -> sparse.csr_array:
    """Weights [resolution, n]: the share of each pixel that each of `n` voxels covers, along one axis.

    The row of pixels and the row of voxels share their center. Where pixels are as large as voxels, they are moved by a
    whole number of pixels instead, so all weights are 0 or 1.
    """
    if is_same_length(pixel, spacing):
        return sparse.csr_array(np.eye(resolution, n, k=-_margin(n, resolution)))
    ratio = pixel / spacing
    # Edges of voxels [n + 1] and of pixels [resolution + 1, 1], in voxels from the common center.
    voxels = np.arange(n + 1) - n / 2
    pixels = ((np.arange(resolution + 1) - resolution / 2) * ratio)[:, None]
    # Two intervals overlap from the larger of their lower edges to the smaller of their upper ones: [resolution, n].
    overlap = np.minimum(pixels[1:], voxels[1:]) - np.maximum(pixels[:-1], voxels[:-1])
    return sparse.csr_array(np.where(overlap > 1e-9, overlap, 0) / ratio)


def _pixel_centers(n: int, spacing: float, resolution: int, pixel: float) -> tuple[float, float]:
    """(step, start): the center of pixel i lies at voxel start + step·i of `n` voxels. Agrees with `area_weights`."""
    if is_same_length(pixel, spacing):  # moved by whole pixels: half a voxel off center if n is odd
        return 1, -_margin(n, resolution)
    step = pixel / spacing
    return step, (0.5 - resolution / 2) * step + (n - 1) / 2


def _nearest_pixels(n: int, spacing: float, resolution: int, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """(pixels, voxels): the center of voxel voxels[i] lies in pixel pixels[i]. Voxels without a pixel are left out.

    A center on the edge of two pixels counts to the second. Agrees with `area_weights`.
    """
    step, start = _pixel_centers(n, spacing, resolution, pixel)
    # Rounded first, so that a center on an edge is on it.
    pixels = np.floor(((np.arange(n) - start) / step + 0.5).round(6)).astype(int)
    voxels = np.flatnonzero((pixels >= 0) & (pixels < resolution))
    return pixels[voxels], voxels


def _margin(n: int, resolution: int) -> int:
    """Pixels before the first of `n` voxels of the same size; if negative, voxels before the first pixel."""
    return (resolution - n) // 2


# --- voxels -> pixels -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PixelGrid:
    """The pixels of an archive, laid over the pictures of a volume."""

    rows: sparse.csr_array  # [R, P], area weights
    columns: sparse.csr_array  # [R, L], area weights
    moves: tuple[int, int] | None = None  # if pixels are as large as voxels: pixels to move by along P and L

    @classmethod
    def of(cls, sides: tuple[int, int], spacing: tuple[float, float], resolution: int, pixel: float) -> PixelGrid:
        """The grid of R×R square pixels of `pixel` mm, centered on P×L voxels of `spacing` mm."""
        rows, columns = (area_weights(n, mm, resolution, pixel) for n, mm in zip(sides, spacing, strict=True))
        same = all(is_same_length(pixel, mm) for mm in spacing)
        return cls(rows, columns, (_margin(sides[0], resolution), _margin(sides[1], resolution)) if same else None)

    def moved(self, picture: np.ndarray) -> np.ndarray:
        """Pad or crop a picture [P, L] to [R, R], where pixels are as large as voxels. Padding is 0."""
        assert self.moves is not None
        out = np.zeros((self.rows.shape[0], self.columns.shape[0]), picture.dtype)
        # Along each axis a pair of slices: the pixels to fill, and the voxels that fill them. A positive move is a
        # margin of pixels, a negative one is a margin of voxels that are cropped.
        places = [
            (slice(max(move, 0), max(move, 0) + n), slice(max(-move, 0), max(-move, 0) + n))
            for move, size, n in zip(self.moves, picture.shape, map(min, out.shape, picture.shape), strict=True)
        ]
        (to_rows, from_rows), (to_columns, from_columns) = places
        out[to_rows, to_columns] = picture[from_rows, from_columns]
        return out

    def shown(self) -> np.ndarray:
        """The share of each voxel that lies within the archive's picture, [P, L]."""
        # Column sums of the weights: how much of each voxel all pixels together cover, along P and along L. Voxels in
        # the middle are covered wholly, so the largest sum stands for 1.
        rows, columns = (np.asarray(w.sum(axis=0)).ravel() for w in (self.rows, self.columns))
        return np.outer(rows / rows.max(), columns / columns.max())

    def mean(self, picture: np.ndarray) -> np.ndarray:
        """Mean of a picture [P, L] over the area of each pixel: float64 [R, R]. Outside the volume counts as 0."""
        if self.moves:
            return self.moved(picture).astype(np.float64)
        # Sparse matrices multiply from the left, so the picture is transposed to average along L:
        # [R, P] @ [P, L] -> [R, L], then ([R, L] @ [L, R]) -> [R, R], transposed back.
        return (self.columns @ (self.rows @ picture.astype(np.float64)).T).T

    def covers(self, mask: np.ndarray) -> np.ndarray:
        """Whether a mask, bool [P, L], covers at least half of each pixel: bool [R, R]."""
        return self.moved(mask) if self.moves else self.mean(mask) >= 0.5 - 1e-9

    def majority(self, classes: np.ndarray, num_classes: int) -> np.ndarray:
        """The class with the largest area in each pixel: class indices [P, L] -> uint8 [R, R].

        If two areas are equal, the lower index wins. Outside the volume is background.
        """
        if self.moves:
            return self.moved(classes)
        # [classes, R, R]
        areas = np.zeros((num_classes, self.rows.shape[0], self.columns.shape[0]))
        if not classes.any():
            return np.zeros(areas.shape[1:], np.uint8)
        for index in np.unique(classes[classes > 0]):
            areas[index] = self.mean(classes == index)
        areas[0] = 1 - areas.sum(axis=0)
        return areas.round(9).argmax(axis=0).astype(np.uint8)  # rounded: equal areas must compare as equal


# --- pixels -> voxels -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VoxelGrid:
    """A volume to be filled with pixels of an archive: its voxels, and the pixel for each. Other voxels stay 0.

    `of` makes the grid for an export, whose voxels are the archive's pixels. `of_source` makes that of the source.
    """

    shape: tuple[int, int, int]  # voxels along L, P, S
    orientation: Orientation  # of the file that will hold them
    affine: np.ndarray  # of that file, 4×4: voxels in its axes -> mm
    columns: tuple[np.ndarray, np.ndarray]  # (pixels, voxels) along L: pixel pixels[i] fills voxel voxels[i]
    rows: tuple[np.ndarray, np.ndarray]  # the same along P
    words: str  # whether these are the source's voxels, or resampled ones
    exact: bool  # whether each pixel has a voxel of its own; otherwise voxels take the nearest pixel

    @classmethod
    def of(cls, shape: Sequence[int], affine: np.ndarray, resolution: int, pixel: float) -> VoxelGrid:
        """The grid for slices of a volume: the volume's own if pixels are as large as its voxels, else the pixels'.

        shape, affine: of the volume's file, in its axes. pixel: edge of the R×R pixels, in mm.
        """
        orientation = Orientation.of(affine)
        sides, axes, affine_lps = _axes(orientation, shape, affine, resolution, pixel)
        if not all(is_same_length(pixel, mm) for _, mm, _, _ in axes):
            return cls._of_pixels(axes, affine_lps, sides[2])
        return cls.of_source(shape, affine, resolution, pixel)

    @classmethod
    def of_source(cls, shape: Sequence[int], affine: np.ndarray, resolution: int, pixel: float) -> VoxelGrid:
        """The volume's own grid. A voxel is filled with the pixel in which its center lies.

        shape, affine, pixel: as for `of`. Pixels as large as voxels come back exactly, each into its own voxel.
        """
        orientation = Orientation.of(affine)
        sides, axes, _ = _axes(orientation, shape, affine, resolution, pixel)
        columns, rows = (_nearest_pixels(*axis) for axis in axes)
        kept = (len(columns[1]), len(rows[1]))
        some = "" if kept == sides[:2] else f", middle {kept[0]}×{kept[1]} of {sides[0]}×{sides[1]}"
        exact = all(is_same_length(pixel, mm) for _, mm, _, _ in axes)
        words = f"source voxels{some}{'' if exact else f', nearest of {pixel:g} mm pixels'}"
        return cls(sides, orientation, affine, columns, rows, words, exact)

    @classmethod
    def _of_pixels(
        cls, axes: Sequence[tuple[int, float, int, float]], affine_lps: np.ndarray, num_slices: int
    ) -> VoxelGrid:
        """A grid of R×R×S voxels along L, P, S: the pixels, at their places in the patient.

        axes: along L and P, the arguments of `area_weights`.
        """
        (_, _, resolution, pixel), _ = axes
        pixels = np.eye(4)  # affine: pixels along L and P -> the volume's voxels
        for along, axis in enumerate(axes):
            pixels[along, along], pixels[along, 3] = _pixel_centers(*axis)
        every = np.arange(resolution)
        return cls(
            shape=(resolution, resolution, num_slices),
            orientation=LPS,
            affine=affine_lps @ pixels,
            columns=(every, every),
            rows=(every, every),
            words=f"resampled to {pixel:g} mm pixels",
            exact=True,
        )

    @property
    def num_slices(self) -> int:
        return self.shape[2]

    def put(self, picture: np.ndarray, volume: np.ndarray, index: int) -> None:
        """Write a picture of the archive, [R, R] with rows along P, into a volume [L, P, S] as slice `index`."""
        (pixels_l, voxels_l), (pixels_p, voxels_p) = self.columns, self.rows
        # np.ix_ selects the rectangle of all pairs (l, p). `volume[..., index]` is a view, so this fills the volume.
        volume[..., index][np.ix_(voxels_l, voxels_p)] = picture.T[np.ix_(pixels_l, pixels_p)]

    def count_unfilled(self, mask: np.ndarray) -> int:
        """Number of voxels of a mask, bool [S, P, L], for which there is no pixel."""
        filled = mask[:, self.rows[1]][:, :, self.columns[1]]
        return int(np.count_nonzero(mask)) - int(np.count_nonzero(filled))

    def count_beyond(self, picture: np.ndarray) -> int:
        """Number of pixels of a picture, [R, R] with rows along P, that are not 0 and for which there is no voxel."""
        within = picture[np.ix_(np.unique(self.rows[0]), np.unique(self.columns[0]))]
        return int(np.count_nonzero(picture)) - int(np.count_nonzero(within))

    def to_file(self, volume: np.ndarray) -> np.ndarray:
        """A volume [L, P, S] in the axes of the file."""
        return self.orientation.to_file(volume)

    def planes(self, indices: Sequence[int]) -> tuple[int, list[int]]:
        """The file's axis along which slices are stacked, and the positions of these slices on it."""
        return self.orientation.planes(indices, self.num_slices)


def _axes(
    orientation: Orientation, shape: Sequence[int], affine: np.ndarray, resolution: int, pixel: float
) -> tuple[tuple[int, int, int], list[tuple[int, float, int, float]], np.ndarray]:
    """A volume's voxels along L, P, S; along L and P the arguments of `area_weights`; and its affine along L, P, S."""
    sides, affine_lps = orientation.shape_lps(shape), orientation.affine_lps(affine, shape)
    spacing = nib.affines.voxel_sizes(affine_lps)[:2]
    return sides, [(n, float(mm), resolution, pixel) for n, mm in zip(sides[:2], spacing, strict=True)], affine_lps

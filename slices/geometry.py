"""From the pictures of a volume to those of an archive: the pixel grid."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import sparse

from dnnlib.errors import UserError
from slices.archive.format import Volume

SMALLEST_RESOLUTION = 16
SAME = 1e-4  # lengths that differ by less than this share are one length: affines are stored as float32
_UNTURNED = np.array([(0, 1), (1, 1), (2, 1)], float)  # nibabel's orientation that leaves axes as they are


def pixel_size(
    sides: tuple[int, int], spacing: tuple[float, float], resolution: int, fov: float | None = None
) -> float:
    """Edge of an archive's square pixels, in mm.

    sides, spacing: voxels and mm between them along P and L. Without `fov` the whole slice is shown, and voxels keep
    their size if they fit in. Raises UserError if pixels would be smaller than voxels: nothing is interpolated up.
    """
    voxel = max(spacing)
    if fov is None:
        return max(voxel, *(n * mm / resolution for n, mm in zip(sides, spacing, strict=True)))
    if fov / resolution < voxel * (1 - SAME):
        fitting = 1 << max(0, int(fov / voxel * (1 + SAME)).bit_length() - 1)
        smaller = f", or --resolution {fitting} or less" if fitting >= SMALLEST_RESOLUTION else ""
        raise UserError(
            f"--fov {fov:g} at --resolution {resolution} asks for pixels of {fov / resolution:.3g} mm, but a voxel has "
            f"{voxel:.3g} mm: choose --fov {np.ceil(resolution * voxel):g} or more{smaller}"
        )
    return fov / resolution


def area_weights(n: int, spacing: float, resolution: int, pixel: float) -> sparse.csr_array:
    """[resolution, n]: which share of each output pixel every one of `n` voxels covers, both centred.

    Where pixels and voxels have one size, voxels are shifted by a whole number of pixels: weights are 0 or 1.
    """
    if is_same_length(pixel, spacing):
        return sparse.csr_array(np.eye(resolution, n, k=-((resolution - n) // 2)))
    ratio = pixel / spacing
    voxels = np.arange(n + 1) - n / 2  # edges, in voxels
    pixels = ((np.arange(resolution + 1) - resolution / 2) * ratio)[:, None]
    overlap = np.minimum(pixels[1:], voxels[1:]) - np.maximum(pixels[:-1], voxels[:-1])
    return sparse.csr_array(np.where(overlap > 1e-9, overlap, 0) / ratio)


@dataclass(frozen=True)
class Grid:
    """From the pictures of a volume to those of the archive: two matrices of area weights, [R, P] and [R, L].

    moves: where pixels are voxels, by how many of them the picture moves along P and L; None where areas are averaged.
    """

    rows: sparse.csr_array
    columns: sparse.csr_array
    moves: tuple[int, int] | None = None

    @classmethod
    def of(cls, sides: tuple[int, int], spacing: tuple[float, float], resolution: int, pixel: float) -> Grid:
        """The grid of R×R square pixels of `pixel` mm, centred on P×L voxels of `spacing` mm."""
        weights = [area_weights(n, mm, resolution, pixel) for n, mm in zip(sides, spacing, strict=True)]
        same = all(is_same_length(pixel, mm) for mm in spacing)
        return cls(*weights, tuple((resolution - n) // 2 for n in sides) if same else None)

    def moved(self, picture: np.ndarray) -> np.ndarray:
        """[P, L] -> [R, R] where pixels are voxels; what lies outside the volume is 0."""
        out = np.zeros((self.rows.shape[0], self.columns.shape[0]), picture.dtype)
        places = [
            (slice(max(move, 0), max(move, 0) + n), slice(max(-move, 0), max(-move, 0) + n))
            for move, size, n in zip(self.moves, picture.shape, map(min, out.shape, picture.shape), strict=True)
        ]
        (to_rows, from_rows), (to_columns, from_columns) = places
        out[to_rows, to_columns] = picture[from_rows, from_columns]
        return out

    def shown(self) -> np.ndarray:
        """[P, L]: which share of each voxel lies within the archive's picture."""
        rows, columns = (np.asarray(w.sum(axis=0)).ravel() for w in (self.rows, self.columns))
        return np.outer(rows / rows.max(), columns / columns.max())

    def mean(self, picture: np.ndarray) -> np.ndarray:
        """Mean of [P, L] over the area of each pixel, [R, R]; what lies outside the volume counts as 0."""
        if self.moves:
            return self.moved(picture).astype(np.float64)
        return (self.columns @ (self.rows @ picture.astype(np.float64)).T).T

    def covers(self, mask: np.ndarray) -> np.ndarray:
        """bool [P, L] -> [R, R]: pixels of which the mask covers half or more."""
        return self.moved(mask) if self.moves else self.mean(mask) >= 0.5 - 1e-9

    def majority(self, classes: np.ndarray, num_classes: int) -> np.ndarray:
        """Class indices [P, L] -> uint8 [R, R]: the class of largest area, the lower of two equal ones.

        What lies outside the volume is background.
        """
        if self.moves:
            return self.moved(classes)
        areas = np.zeros((num_classes, self.rows.shape[0], self.columns.shape[0]))
        if not classes.any():
            return np.zeros(areas.shape[1:], np.uint8)
        for index in np.unique(classes[classes > 0]):
            areas[index] = self.mean(classes == index)
        areas[0] = 1 - areas.sum(axis=0)
        return areas.round(9).argmax(axis=0).astype(np.uint8)  # rounded: equal areas must compare as equal


@dataclass(frozen=True)
class FileGrid:
    """The voxels of an exported volume, and which pixels of the archive they are.

    shape: voxels along L, P, S; affine: the file's, whatever its axes; turn: nibabel's orientation that takes axes to
    L, P, S to the file's; columns, rows: (pixels, voxels) along L and P, which pixel is which voxel; all others are
    0; words: whose voxels these are.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    turn: np.ndarray
    columns: tuple[np.ndarray, np.ndarray]
    rows: tuple[np.ndarray, np.ndarray]
    words: str

    def place(self, picture: np.ndarray, volume: np.ndarray, index: int) -> None:
        """Put a picture of the archive, [R, R] with rows along P, into a volume [L, P, S]."""
        (pixels_l, voxels_l), (pixels_p, voxels_p) = self.columns, self.rows
        volume[np.ix_(voxels_l, voxels_p, [index])] = picture.T[np.ix_(pixels_l, pixels_p)][..., None]

    def to_file(self, volume: np.ndarray) -> np.ndarray:
        """A volume [L, P, S] in the axes of the file."""
        return nib.orientations.apply_orientation(volume, self.turn)

    def planes(self, indices: list[int]) -> tuple[int, list[int]]:
        """The axis of the file along which slices lie, and the places on it of the slices with these indices."""
        axis, step = (int(v) for v in self.turn[2])
        return axis, [i if step > 0 else self.shape[2] - 1 - i for i in indices]


def file_grid(volume: Volume, resolution: int) -> FileGrid:
    """The grid to write a volume's slices on: the source's where pixels are its voxels, else the archive's own.

    The archive's own has voxel axes to L, P, S and R×R×S voxels, each pixel where it lies in the patient.
    """
    source = np.array(volume.affine)
    axes, lps = nib.io_orientation(source), nib.orientations.axcodes2ornt("LPS")
    to_lps = nib.orientations.ornt_transform(axes, lps)
    shape = [0, 0, 0]
    for n, (axis, _) in zip(volume.shape, to_lps, strict=True):
        shape[int(axis)] = int(n)
    affine = source @ nib.orientations.inv_ornt_aff(to_lps, volume.shape)  # of the source's voxels in L, P, S
    spacing = [float(mm) for mm in nib.affines.voxel_sizes(affine)]
    plane = list(zip(shape[:2], spacing[:2], strict=True))

    if all(is_same_length(volume.pixel, mm) for _, mm in plane):
        # Each pixel has the weight 1 for one voxel, and none for others.
        columns, rows = (area_weights(n, mm, resolution, volume.pixel).nonzero() for n, mm in plane)
        kept = (len(columns[1]), len(rows[1]))
        some = "" if kept == tuple(shape[:2]) else f", middle {kept[0]}×{kept[1]} of {shape[0]}×{shape[1]}"
        grid = FileGrid(
            shape=tuple(shape),
            affine=source,
            turn=nib.orientations.ornt_transform(lps, axes),
            columns=columns,
            rows=rows,
            words=f"source voxels{some}",
        )
    else:
        steps, starts = np.array([_pixel_centres(n, mm, resolution, volume.pixel) for n, mm in plane]).T
        pixels = np.diag((*steps, 1, 1))
        pixels[:2, 3] = starts
        every = (np.arange(resolution),) * 2
        grid = FileGrid(
            shape=(resolution, resolution, shape[2]),
            affine=affine @ pixels,
            turn=_UNTURNED,
            columns=every,
            rows=every,
            words=f"resampled to {volume.pixel:g} mm pixels",
        )
    return grid


def _pixel_centres(n: int, spacing: float, resolution: int, pixel: float) -> tuple[float, float]:
    """(step, start): the centre of pixel i lies at start + step·i, counted in `n` voxels; as `area_weights` has it."""
    if is_same_length(pixel, spacing):  # moved by whole pixels, so an odd difference is not centred
        return 1, -((resolution - n) // 2)
    step = pixel / spacing
    return step, (0.5 - resolution / 2) * step + (n - 1) / 2


def is_same_length(a: float, b: float) -> bool:
    return abs(a / b - 1) < SAME

"""Head mask of a case. Voxels outside it are background."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from dnnlib.errors import UserError
from slices.convert.path_patterns import Pattern
from slices.intensity import intensity_window

AUTO, ALL = "auto", "all"
# Foreground differs from a constant background by more than this share of the window of intensities.
TOLERANCE = 0.01
# The background is constant if, of all values within five tolerances of it, this share is within one tolerance.
CONSTANT = 0.9
TISSUE = 0.2  # tissue is brighter than this share of the mean of bright voxels
# Tissue is brighter than this many times the median dark voxel. Magnitudes of noise without signal follow Rayleigh's
# distribution: 99.8 % of them lie below.
NOISE = 3.0
AIR = 0.4  # air surrounds the head if more than this share of the foreground's outline is far from tissue
NEAR = 0.02  # distances above this share of a picture's edge are far
SPECK = 0.01  # pieces smaller than this share of the largest are specks
SKIN = 1 / 256  # width of the blurred skin, as a share of a picture's edge

# Structuring elements [3, 3, 3] over S, P, L: the six neighbors of a voxel, and only the four in its own picture.
_CROSS = ndimage.generate_binary_structure(3, 1)
_IN_PICTURES = _CROSS & np.array([False, True, False])[:, None, None]


@dataclass(frozen=True)
class HeadRule:
    """The value of `--head`: what counts as head."""

    text: str  # as given; AUTO: find the head in the images; ALL: every voxel
    above: float | None = None  # a voxel is head if any contrast is larger
    masks: Pattern | None = None  # paths of head masks

    @classmethod
    def parse(cls, text: str) -> HeadRule:
        """Read the option. Raises UserError unless it is AUTO, ALL, a number or a pattern of files."""
        if text in (AUTO, ALL):
            return cls(text)
        with contextlib.suppress(ValueError):
            if math.isfinite(above := float(text)):
                return cls(text, above=above)
        if "{" not in text:
            raise UserError(
                f"--head {text}: expected {AUTO}, {ALL}, a number that voxels of the head exceed, or a pattern of "
                "masks such as '{case}/{case}_brainmask.nii.gz'"
            )
        return cls(text, masks=Pattern.parse(text, "--head"))

    @property
    def is_auto(self) -> bool:
        return self.text == AUTO

    def find(self, contrasts: Sequence[np.ndarray], mask: np.ndarray | None = None) -> np.ndarray:
        """Find the head from C contrasts [S, P, L]: bool [S, P, L]. mask: the mask that was read, if masks are given.

        Raises UserError if no voxel is head.
        """
        if mask is not None:
            return mask
        if self.above is not None:
            return head_above(contrasts, self.above)
        return np.ones(contrasts[0].shape, bool) if self.text == ALL else find_head(contrasts)


def head_above(contrasts: Sequence[np.ndarray], value: float) -> np.ndarray:
    """Voxels above a value in any contrast: C intensities [S, P, L] -> bool [S, P, L]."""
    head = np.any([volume > _bound(volume, value, math.floor) for volume in contrasts], axis=0)
    if not head.any():
        most = max(float(volume.max()) for volume in contrasts)
        raise UserError(f"--head {value:g}: no voxel is above that; the highest value is {most:g}")
    return head


def find_head(contrasts: Sequence[np.ndarray]) -> np.ndarray:
    """Find the head in the images: C intensities [S, P, L] -> bool [S, P, L].

    The head is the foreground of any contrast: its largest connected piece, without specks and thin bridges, with holes
    filled. If that includes air around the head, only its tissue is taken, with holes filled in each picture and a
    margin for the blurred skin. Raises UserError if every contrast is constant.
    """
    seen = np.zeros(contrasts[0].shape, bool)  # foreground in any contrast
    bright = seen.copy()  # tissue in any contrast
    for volume in contrasts:
        there = foreground(volume)
        seen |= there
        bright |= there & tissue(volume, there)
    if not seen.any():
        raise UserError("no head found: in every contrast all voxels have one value")
    box = _bounding_box(seen)  # everything below is faster without the background around
    found = _largest_piece(np.ascontiguousarray(seen[box]), _CROSS)
    edge = int(max(seen.shape[1:]))
    near = max(2, round(NEAR * edge))  # voxels
    whole = _filled(_closed(_without_specks(bright[box]), near), _IN_PICTURES)
    if _far_share(found, whole, near) > AIR:
        found = _grown(_largest_piece(whole, _IN_PICTURES), round(SKIN * edge))
    head = np.zeros_like(seen)
    head[box] = found
    return head


def foreground(volume: np.ndarray) -> np.ndarray:
    """Voxels that differ from a constant background, such as 0 or -1000: intensities [S, P, L] -> bool [S, P, L].

    The background is the most frequent value on the faces of the volume. If the faces show noise or tissue instead of
    one value, every voxel is foreground.
    """
    low, high = intensity_window(volume[::2, ::2, ::2])  # every 8th voxel: percentiles are slow and need no more
    tolerance = TOLERANCE * (high - low)
    # The first and the last plane along each axis.
    faces = np.concatenate([np.take(volume, i, axis).ravel() for axis in range(3) for i in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    background = float(values[counts.argmax()])
    away = np.abs(faces.astype(np.float64) - background)
    if (away <= tolerance).sum() < CONSTANT * (away <= 5 * tolerance).sum():
        return np.ones(volume.shape, bool)
    return (volume < _bound(volume, background - tolerance, math.ceil)) | (
        volume > _bound(volume, background + tolerance, math.floor)
    )


def tissue(volume: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Voxels brighter than air, which gives noise only: intensities [S, P, L] -> bool [S, P, L].

    there: the foreground. Its voxels above Otsu's threshold count as bright. Signals are measured from 0, or from the
    lowest value if that is negative.
    """
    # Every 8th voxel of the foreground: enough for a threshold.
    values = volume[::2, ::2, ::2][there[::2, ::2, ::2]]
    if not values.size:
        return there
    low, high = intensity_window(values)
    least = min(low, 0.0)
    signal = np.clip(values.astype(np.float64), low, high) - least
    bright = signal[signal >= min(otsu_threshold(signal), signal.max())].mean()
    dark = signal[signal <= TISSUE * bright]
    noise = NOISE * float(np.median(dark)) if dark.size else 0.0
    return volume >= _bound(volume, least + max(TISSUE * bright, noise), math.ceil)


def _bound(volume: np.ndarray, value: float, rounded: Callable[[float], int]) -> float | int:
    """A bound in the type of the volume. Comparing integers with a float would convert every voxel first.

    rounded: math.floor or math.ceil, whichever leaves the comparison as it is.
    """
    if volume.dtype.kind == "f":
        return float(value)
    # A bound beyond the type would overflow. Booleans are compared like bytes.
    limits = np.iinfo(volume.dtype) if volume.dtype.kind in "iu" else np.iinfo(np.uint8)
    return int(min(max(rounded(value), limits.min), limits.max))


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """The threshold that maximizes the variance between the two groups that it separates (Otsu 1979)."""
    counts, edges = np.histogram(values.astype(np.float64, copy=False), bins)
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]  # [bins − 1]: number of values below each inner edge
    above = counts.sum() - below
    sums = np.cumsum(counts * centers)
    mean_below = sums[:-1] / np.maximum(below, 1)
    mean_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = below.astype(float) * above * (mean_below - mean_above) ** 2
    # All thresholds in a gap between the groups are equally good: take the middle of the gap.
    return float(edges[1:-1][np.isclose(between, between.max(), rtol=1e-9)].mean())


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that contains a mask: a slice for each axis."""
    box = []
    for axis in range(mask.ndim):
        # Reduced over all other axes: the positions along this one that have any voxel of the mask.
        there = mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)).nonzero()[0]
        box.append(slice(int(there[0]), int(there[-1]) + 1))
    return tuple(box)


def _largest_piece(seen: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """The largest connected piece, without specks and thin bridges, with its holes filled."""
    core = grow(~grow(~seen))  # an opening, except at the volume's edge, where the head may be cut off
    pieces, count = ndimage.label(core if core.any() else seen, _CROSS)
    # Piece 0 is the background, which [1:] leaves out.
    largest = pieces == np.bincount(pieces.ravel(), minlength=count + 1)[1:].argmax() + 1
    # The opening took off corners of the piece: growing into the corners restores them.
    return _filled(grow(largest, corners=True) & seen, structure)


def _filled(mask: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """Fill the holes of a mask: background that the structure doesn't connect with the outside."""
    # A margin of background connects everything that is outside.
    outside, _ = ndimage.label(np.pad(~mask, 1, constant_values=True), structure)
    # The first voxel of each picture lies in the margin, so its label is that of the outside: [S, 1, 1].
    return (outside != outside[:, :1, :1])[1:-1, 1:-1, 1:-1]


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """Remove pieces much smaller than the largest. Thin pieces, such as skin, stay."""
    pieces, _ = ndimage.label(mask, _CROSS)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0  # the background
    # A table: number of a piece -> whether it stays, looked up for every voxel.
    return (sizes >= SPECK * sizes.max())[pieces] & mask


def _closed(mask: np.ndarray, voxels: int) -> np.ndarray:
    """Close gaps within pictures. Bone, which is as dark as air, separates skin from brain."""
    # Padded with copies of the edges, as if the head went on beyond them.
    around = [(0, 0), (voxels, voxels), (voxels, voxels)]
    grown = _grown(np.pad(mask, around, mode="edge"), voxels)
    return ~_grown(~grown, voxels)[:, voxels:-voxels, voxels:-voxels]


def _far_share(found: np.ndarray, inner: np.ndarray, voxels: int) -> float:
    """Share of the outline of `found` that is more than `voxels` away from `inner`, within pictures."""
    around = np.pad(~found, [(0, 0), (1, 1), (1, 1)], constant_values=True)
    # Voxels of `found` next to others, or at the edge of a picture.
    outline = found & _grown(around, 1)[:, 1:-1, 1:-1]
    return np.count_nonzero(outline & ~_grown(inner, voxels)) / np.count_nonzero(outline)


def _grown(mask: np.ndarray, voxels: int) -> np.ndarray:
    """Dilate a mask [S, P, L] by a number of voxels within each picture."""
    for _ in range(voxels):
        mask = grow(mask, axes=(1, 2))
    return mask


def grow(mask: np.ndarray, corners: bool = False, axes: Sequence[int] = (0, 1, 2)) -> np.ndarray:
    """Dilate a mask by one voxel along the axes, with `corners` also diagonally. Much faster than SciPy."""
    grown = mask.copy()
    for axis in axes:
        # With corners, each axis grows what the axes before it have grown.
        source = grown.copy() if corners else mask
        # Along this axis, all voxels but the first, and all but the last: shifted by one against each other.
        first = (slice(None),) * axis
        ahead, behind = (*first, slice(1, None)), (*first, slice(None, -1))
        grown[ahead] |= source[behind]
        grown[behind] |= source[ahead]
    return grown

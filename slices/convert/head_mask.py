"""Which voxels of a case are head; everything else is background."""

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
# Foreground differs from a constant background by more than this share of the intensities' robust range.
TOLERANCE = 0.01
# The background is constant if this share of the values near it, within five tolerances, is within one.
CONSTANT = 0.9
TISSUE = 0.2  # tissue is brighter than this share of what is bright
# Tissue is brighter than this many times the typical dark voxel. 99.8 % of noise without signal is not: its magnitudes
# follow Rayleigh's distribution.
NOISE = 3.0
AIR = 0.4  # there is air if this share of the foreground's outline is far from tissue
NEAR = 0.02  # share of a picture's edge that is not far
SPECK = 0.01  # pieces smaller than this share of the largest are specks
SKIN = 1 / 256  # share of a picture's edge over which the skin is blurred

_CROSS = ndimage.generate_binary_structure(3, 1)
_IN_PICTURES = _CROSS & np.array([False, True, False])[:, None, None]


@dataclass(frozen=True)
class HeadRule:
    """How `--head` says what is head."""

    text: str  # as given; AUTO: find the head in the images; ALL: every voxel
    above: float | None = None  # voxels above it in any contrast
    masks: Pattern | None = None  # where masks of the head lie

    @classmethod
    def parse(cls, text: str) -> HeadRule:
        """Raises UserError for what is neither AUTO, ALL, a number nor a pattern of files."""
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
        """Which voxels are head, bool [S, P, L]; of C intensities [S, P, L], or the mask that was read.

        Raises UserError if none is.
        """
        if mask is not None:
            return mask
        if self.above is not None:
            return head_above(contrasts, self.above)
        return np.ones(contrasts[0].shape, bool) if self.text == ALL else find_head(contrasts)


def head_above(contrasts: Sequence[np.ndarray], value: float) -> np.ndarray:
    """Voxels above a value in any contrast, and nothing else: C intensities [S, P, L] -> bool [S, P, L]."""
    head = np.any([volume > _bound(volume, value, math.floor) for volume in contrasts], axis=0)
    if not head.any():
        most = max(float(volume.max()) for volume in contrasts)
        raise UserError(f"--head {value:g}: no voxel is above that; the highest value is {most:g}")
    return head


def find_head(contrasts: Sequence[np.ndarray]) -> np.ndarray:
    """Which voxels belong to the head: C intensities [S, P, L] -> bool [S, P, L].

    The head is what is foreground in any contrast: one connected piece without specks and thin bridges, its holes
    filled. If air surrounds that, the head is the tissue in it: in each picture with its holes filled and a margin for
    the blurred skin. Raises UserError if every contrast is constant.
    """
    seen = np.zeros(contrasts[0].shape, bool)
    bright = seen.copy()
    for volume in contrasts:
        there = foreground(volume)
        seen |= there
        bright |= there & tissue(volume, there)
    if not seen.any():
        raise UserError("no head found: in every contrast all voxels have one value")
    box = _bounding_box(seen)
    found = _largest_piece(np.ascontiguousarray(seen[box]), _CROSS)
    edge = int(max(seen.shape[1:]))
    near = max(2, round(NEAR * edge))
    whole = _filled(_closed(_without_specks(bright[box]), near), _IN_PICTURES)
    if _far_share(found, whole, near) > AIR:
        found = _grown(_largest_piece(whole, _IN_PICTURES), round(SKIN * edge))
    head = np.zeros_like(seen)
    head[box] = found
    return head


def foreground(volume: np.ndarray) -> np.ndarray:
    """Voxels unlike a constant background, such as 0 or -1000: intensities [S, P, L] -> bool of the same shape.

    The background's value is the most frequent one on the volume's faces, whatever its sign. Where the faces show
    noise, or the inside of a body, instead of one value, every voxel is foreground.
    """
    low, high = intensity_window(volume[::2, ::2, ::2])  # enough for percentiles, which are the slow part
    tolerance = TOLERANCE * (high - low)
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
    """Voxels brighter than air, which gives no signal but noise: intensities [S, P, L] -> bool of the same shape.

    there: the foreground. Bright are its voxels above Otsu's threshold. No signal is 0, or the lowest value if some are
    negative.
    """
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
    """The same bound in the volume's own type: comparing integers with fractions would convert every voxel."""
    if volume.dtype.kind == "f":
        return float(value)
    limits = np.iinfo(volume.dtype) if volume.dtype.kind in "iu" else np.iinfo(np.uint8)
    return int(min(max(rounded(value), limits.min), limits.max))


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """The threshold that maximizes the variance between the two groups it makes (Otsu 1979)."""
    counts, edges = np.histogram(values.astype(np.float64, copy=False), bins)
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]  # [bins − 1]: how many lie below each inner edge
    above = counts.sum() - below
    sums = np.cumsum(counts * centers)
    mean_below = sums[:-1] / np.maximum(below, 1)
    mean_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = below.astype(float) * above * (mean_below - mean_above) ** 2
    # Any threshold in a gap between the groups is as good as another: take the middle of the gap.
    return float(edges[1:-1][np.isclose(between, between.max(), rtol=1e-9)].mean())


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        there = mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)).nonzero()[0]
        box.append(slice(int(there[0]), int(there[-1]) + 1))
    return tuple(box)


def _largest_piece(seen: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """The largest connected piece, without specks and thin bridges, with its holes filled."""
    core = grow(~grow(~seen))  # an opening; a head that the field of view cuts off goes on beyond it
    pieces, count = ndimage.label(core if core.any() else seen, _CROSS)
    largest = pieces == np.bincount(pieces.ravel(), minlength=count + 1)[1:].argmax() + 1
    # Growing into the corners gives back those that the opening took.
    return _filled(grow(largest, corners=True) & seen, structure)


def _filled(mask: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """A mask with the holes that the structure doesn't connect with the outside."""
    outside, _ = ndimage.label(np.pad(~mask, 1, constant_values=True), structure)
    # The first voxel of each picture lies in the padding, which is outside.
    return (outside != outside[:, :1, :1])[1:-1, 1:-1, 1:-1]


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """The pieces that are not much smaller than the largest; thin ones stay, such as skin."""
    pieces, _ = ndimage.label(mask, _CROSS)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return (sizes >= SPECK * sizes.max())[pieces] & mask


def _closed(mask: np.ndarray, voxels: int) -> np.ndarray:
    """Close gaps within pictures: bone, as dark as air, separates skin from brain. All goes on beyond the edges."""
    around = [(0, 0), (voxels, voxels), (voxels, voxels)]
    grown = _grown(np.pad(mask, around, mode="edge"), voxels)
    return ~_grown(~grown, voxels)[:, voxels:-voxels, voxels:-voxels]


def _far_share(found: np.ndarray, inner: np.ndarray, voxels: int) -> float:
    """Share of the outline of `found`, in its pictures, that is more than `voxels` away from `inner`."""
    around = np.pad(~found, [(0, 0), (1, 1), (1, 1)], constant_values=True)
    outline = found & _grown(around, 1)[:, 1:-1, 1:-1]
    return np.count_nonzero(outline & ~_grown(inner, voxels)) / np.count_nonzero(outline)


def _grown(mask: np.ndarray, voxels: int) -> np.ndarray:
    """Dilate within pictures."""
    for _ in range(voxels):
        mask = grow(mask, axes=(1, 2))
    return mask


def grow(mask: np.ndarray, corners: bool = False, axes: Sequence[int] = (0, 1, 2)) -> np.ndarray:
    """Dilate by one voxel along the axes, or into the corners as well; many times as fast as SciPy does."""
    grown = mask.copy()
    for axis in axes:
        source = grown.copy() if corners else mask
        # All voxels but the first along the axis, and all but the last: each voxel's two neighbors.
        first = (slice(None),) * axis
        ahead, behind = (*first, slice(1, None)), (*first, slice(None, -1))
        grown[ahead] |= source[behind]
        grown[behind] |= source[ahead]
    return grown

"""Which voxels of a case are head; everything else is background."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from dnnlib.errors import UserError
from slices.intensity import percentiles

# Foreground differs from the background by more than this share of the intensities' robust range.
TOLERANCE = 0.01
# The background is constant if this share of the values near it, within five tolerances, is within one.
CONSTANT = 0.9


def find_head(contrasts: Sequence[np.ndarray]) -> np.ndarray:
    """Which voxels belong to the head: C intensities [S, P, L] -> bool [S, P, L].

    What is foreground in any contrast, without specks and thin bridges, as one connected part with its holes filled.
    Raises UserError if every contrast is constant.
    """
    seen = foreground(contrasts[0])
    for volume in contrasts[1:]:
        seen |= foreground(volume)
    if not seen.any():
        raise UserError("no head found: in every contrast all voxels have one value")
    box = _bounding_box(seen)
    head = np.zeros_like(seen)
    head[box] = _largest_part(np.ascontiguousarray(seen[box]))
    return head


def foreground(volume: np.ndarray) -> np.ndarray:
    """Voxels unlike the background: intensities [S, P, L] -> bool of the same shape.

    The background's value is the most frequent one on the volume's faces, whatever its sign. Where the faces show noise
    instead of one value, Otsu's threshold divides dark from bright.
    """
    sample = volume[::2, ::2, ::2]  # enough for percentiles, which are the slow part
    low, high = percentiles(sample)
    tolerance = TOLERANCE * (high - low)

    faces = np.concatenate([np.take(volume, i, axis).ravel() for axis in range(3) for i in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    background = float(values[counts.argmax()])
    away = np.abs(faces.astype(np.float64) - background)
    if (away <= tolerance).sum() >= CONSTANT * (away <= 5 * tolerance).sum():
        return (volume < _bound(volume, background - tolerance, math.ceil)) | (
            volume > _bound(volume, background + tolerance, math.floor)
        )
    return volume > _bound(volume, otsu_threshold(np.clip(sample, low, high)), math.floor)


def _bound(volume: np.ndarray, value: float, rounded: Callable[[float], int]) -> float | int:
    """The same bound in the volume's own type: comparing integers with fractions would convert every voxel."""
    if volume.dtype.kind == "f":
        return float(value)
    limits = np.iinfo(volume.dtype) if volume.dtype.kind in "iu" else np.iinfo(np.uint8)
    return int(min(max(rounded(value), limits.min), limits.max))


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """The threshold that maximises the variance between the two groups it makes (Otsu 1979)."""
    counts, edges = np.histogram(values.astype(np.float64, copy=False), bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]  # [bins − 1]: how many lie below each inner edge
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
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


def _largest_part(seen: np.ndarray) -> np.ndarray:
    cross = ndimage.generate_binary_structure(3, 1)
    core = grow(~grow(~seen))  # an opening; a head that the field of view cuts off goes on beyond it
    parts, count = ndimage.label(core if core.any() else seen, cross)
    largest = parts == np.bincount(parts.ravel(), minlength=count + 1)[1:].argmax() + 1
    head = grow(largest, corners=True) & seen  # gives back the corners that opening took
    outside, _ = ndimage.label(np.pad(~head, 1, constant_values=True), cross)
    return (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]


def grow(mask: np.ndarray, corners: bool = False) -> np.ndarray:
    """Binary dilation by one voxel along the axes, or into the corners as well; many times as fast as SciPy's."""
    grown = mask.copy()
    for axis in range(mask.ndim):
        source = grown.copy() if corners else mask
        first = (slice(None),) * axis
        ahead, behind = (*first, slice(1, None)), (*first, slice(None, -1))
        grown[ahead] |= source[behind]
        grown[behind] |= source[ahead]
    return grown

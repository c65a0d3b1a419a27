"""HD95: how far the surfaces of prediction and truth lie apart, in the stacked slices of an examination."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dnnlib.errors import UserError
from dnnlib.text import count, name_some
from slices.archive.format import Volume
from slices.archive.reader import ArchiveReader
from slices.geometry import stack_spacing

Spacing = tuple[float, float, float]  # mm between slices, between rows and between columns of pixels


@dataclass(frozen=True)
class Stack:
    """The slices of one examination, laid on each other."""

    order: tuple[int, ...]  # the slices from the feet to the head, as numbers in the examination
    missing: int  # slices that the archive lacks between the first and the last
    spacing: Spacing

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing, so that distances can be measured."""
        return self.missing == 0

    def diagonal(self, height: int, width: int) -> float:
        """Diagonal of the stacked volume in mm, whose slices have height×width pixels."""
        return _diagonal((len(self.order), height, width), self.spacing)


def stack_of(volume: Volume | None, places: Sequence[int | None]) -> Stack | None:
    """How slices with these indices in a volume are stacked. None if that is not known."""
    if volume is None or volume.slices is None or (spacing := _spacing(volume)) is None:
        return None
    known = [place for place in places if place is not None and place < volume.slices]
    if len(set(known)) < len(places):  # some have no place, or a place that another one has
        return None
    order = tuple(sorted(range(len(known)), key=known.__getitem__))
    return Stack(order, max(known) - min(known) + 1 - len(known), spacing)


def refuse_gaps(reader: ArchiveReader) -> None:
    """Raise UserError if an archive lacks slices between others of one volume.

    Slices that it lacks at the top or the bottom of a volume leave the others together, and don't matter.
    """
    gaps = {}
    for (_, name), numbers in reader.by_examination().items():
        volume = None if name is None else reader.info.volumes[name]
        stack = stack_of(volume, [reader.info.slices[i].index for i in numbers])
        if stack is not None and not stack.is_whole:
            gaps[name] = stack.missing
    if gaps:
        some = name_some([f"{name} ({count(n, 'slice')})" for name, n in gaps.items()])
        raise UserError(
            f"{reader.path}: slices are missing in the middle of {count(len(gaps), 'volume')}, so that distances in "
            f"mm can't be measured there: {some}; convert the test patients with --test-slices all"
        )


def hd95(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing) -> float:
    """MONAI's HD95 in mm of two masks, bool [S, H, W]: 0 if both are empty, and the volume's diagonal if one is.

    Both surfaces are the voxels of a mask that have a neighbor outside it, or lie at an end of the volume. From each
    voxel of one surface the distance to the nearest of the other is taken, and of these distances the 95th percentile.
    HD95 is the larger one of both directions.
    """
    if not prediction.any() and not truth.any():
        return 0.0
    if not prediction.any() or not truth.any():
        # MONAI would return NaN, which its mean then leaves out.
        return _diagonal(truth.shape, spacing)
    import torch
    from monai.metrics import compute_hausdorff_distance  # takes seconds to import

    box = _bounding_box(prediction | truth)
    # [S, H, W] -> [1, 1, S, H, W]: one volume with one channel. By default, MONAI leaves out the first channel.
    one, other = (torch.from_numpy(mask[box])[None, None] for mask in (prediction, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI calls itself in a way that it is going to drop
        found = compute_hausdorff_distance(
            one, other, include_background=True, percentile=95, directed=False, spacing=[float(mm) for mm in spacing]
        )
    return float(found)


def _spacing(volume: Volume) -> Spacing | None:
    return stack_spacing(volume.shape, np.array(volume.affine), volume.pixel)


def _diagonal(shape: Sequence[int], spacing: Spacing) -> float:
    return math.hypot(*(n * mm for n, mm in zip(shape, spacing, strict=True)))


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around a mask. Surfaces are the same in it: its ends count as outside, as those of a volume."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        filled = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)

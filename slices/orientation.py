"""Axes of a file ↔ anatomical axes L, P, S, which run to the patient's left, back and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np


@dataclass(frozen=True)
class Orientation:
    """How to turn a file's voxels to L, P, S and back. Axes are flipped and permuted; nothing is interpolated."""

    turn: np.ndarray  # [3, 2], nibabel's form: for each axis of the file, its place in L, P, S and its sense, ±1

    @classmethod
    def of(cls, affine: np.ndarray) -> Orientation:
        """The orientation of voxels with this affine, 4×4. Oblique axes count as the nearest anatomical ones."""
        return cls(nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt("LPS")))

    def to_lps(self, voxels: np.ndarray) -> np.ndarray:
        """Voxels in the file's axes -> [L, P, S]; a view."""
        return nib.orientations.apply_orientation(voxels, self.turn)

    def to_file(self, volume: np.ndarray) -> np.ndarray:
        """A volume [L, P, S] -> voxels in the file's axes; a view."""
        return nib.orientations.apply_orientation(volume, self._back())

    def shape_lps(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Shape in the file's axes -> numbers of voxels along L, P, S."""
        sides = {int(axis): int(n) for n, (axis, _) in zip(shape, self.turn, strict=True)}
        return sides[0], sides[1], sides[2]

    def affine_lps(self, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The file's affine and shape -> the affine, 4×4, of the same voxels in the axes L, P, S."""
        # inv_ornt_aff maps indices after the turn to indices before it, for the affine that takes those to mm.
        return affine @ nib.orientations.inv_ornt_aff(self.turn, shape)

    def planes(self, indices: Sequence[int], num_slices: int) -> tuple[int, list[int]]:
        """Indices of slices, counted from the feet -> the file's axis along S, and their indices on it."""
        axis, step = (int(v) for v in self._back()[2])
        return axis, [i if step > 0 else num_slices - 1 - i for i in indices]

    def _back(self) -> np.ndarray:
        """The inverse turn, [3, 2]: for each of L, P, S, the axis of the file, and its sense."""
        axes = self.turn[:, 0].astype(int)
        # Assigning through a permutation inverts it. A flip is its own inverse.
        back = np.empty((3, 2))
        back[axes, 0], back[axes, 1] = np.arange(3), self.turn[:, 1]
        return back


LPS = Orientation(np.array([(0, 1), (1, 1), (2, 1)], float))  # of voxels that lie along L, P, S already

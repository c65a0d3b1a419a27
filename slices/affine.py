"""Where a file's voxels lie in mm: what its header says, and how the voxel grid of one file fits that of another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from dnnlib.errors import UserError

ROUNDING = 0.05  # voxels by which headers of one place may differ
SAME = 0.4  # voxels: grids that differ by less are one grid; half a voxel is another grid
_UNTURNED = np.array([(0, 1), (1, 1), (2, 1)], float)  # nibabel's orientation that leaves axes as they are


class Place(NamedTuple):
    """What a header says of the place of its voxels."""

    affine: np.ndarray  # voxels -> mm, 4×4, invertible
    oriented: bool  # whether the header states an orientation at all
    rival: np.ndarray | None = None  # another affine that the header states as well, and that contradicts the first
    remarks: tuple[str, ...] = ()  # oddities, in words


def has_axes(affine: np.ndarray) -> bool:
    """Whether an affine, 4×4, is invertible and gives each axis of voxels an axis of the world that it runs along."""
    return bool(
        np.isfinite(affine).all()
        and abs(np.linalg.det(affine)) >= 1e-9
        and not np.isnan(nib.io_orientation(affine)).any()
    )


@np.errstate(all="ignore")  # absurd headers make infinities and NaN, which are unusable and fit nothing
def place_of(header: Any, shape: Sequence[int]) -> Place:
    """The place that a NIfTI header states for a volume: by its sform, or else its qform, or else as nibabel assumes.

    Raises UserError if all that it states is unusable.
    """
    stated = [name for name in ("sform", "qform") if header[f"{name}_code"] > 0]
    found = {name: affine for name in stated if (affine := _transform(header, name)) is not None}
    if not stated:
        affine = header.get_base_affine()
        if not has_axes(affine):
            raise UserError("the header states no orientation, and sizes of voxels that none can have")
        return Place(affine, oriented=False)
    if not found:
        what = " and ".join(stated)
        raise UserError(f"the header's {what} can't be inverted, so the orientation is unknown; mend the header")
    affine, *rivals = found.values()
    taken = next(iter(found))
    remarks = [f"{name} can't be inverted, {taken} taken" for name in stated if name not in found]
    rival = next((rival for rival in rivals if _contradict(affine, rival, shape)), None)
    sizes, pixdim = nib.affines.voxel_sizes(affine), np.asarray(header["pixdim"][1:4], float)
    if len(found) == 1 and "sform" in found and (pixdim > 0).all() and not np.allclose(sizes, pixdim, rtol=0.01):
        remarks.append(
            f"voxels have {format_sizes(sizes)} mm by its sform, taken, and {format_sizes(pixdim)} by pixdim"
        )
    return Place(affine, True, rival, tuple(remarks))


def _contradict(affine: np.ndarray, rival: np.ndarray, shape: Sequence[int]) -> bool:
    """Whether two affines of one header put its voxels into different places."""
    found = fit(rival, shape, affine)
    return found.is_turned or found.off > ROUNDING


def _transform(header: Any, name: str) -> np.ndarray | None:
    """The header's sform or qform; None if it is unusable."""
    try:
        affine = header.get_sform() if name == "sform" else header.get_qform()
    except (HeaderDataError, ValueError):  # a quaternion of NaN, or one longer than 1
        return None
    return affine if has_axes(affine) else None


# --- two grids ------------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """How a volume lies on the grid of another, once its axes are turned round and exchanged to run as those do."""

    turn: np.ndarray  # nibabel's orientation that does so
    shape: tuple[int, ...]  # of the volume when turned
    shift: np.ndarray  # [3]: how far its middle is off, in voxels along the axes of the grid
    spread: np.ndarray  # [3]: how much farther its ends are off, where sizes or directions differ
    angle: float  # degrees between directions
    distance: float  # mm that any voxel is off at most

    @property
    def is_turned(self) -> bool:
        return not np.array_equal(self.turn, _UNTURNED)

    @property
    def off(self) -> float:
        """The most that any voxel is off along an axis, in voxels."""
        return float((np.abs(self.shift) + self.spread).max())


@np.errstate(all="ignore")
def fit(affine: np.ndarray, shape: Sequence[int], grid: np.ndarray) -> Fit:
    """How a volume of this affine and shape lies on the grid of another affine. Both must be invertible."""
    relative = np.linalg.inv(grid) @ affine  # voxels -> voxels of the grid
    turn = nib.io_orientation(relative) if np.isfinite(relative).all() else _UNTURNED
    turn = _UNTURNED if np.isnan(turn).any() else turn
    turned = relative @ nib.orientations.inv_ornt_aff(turn, shape)
    sides = tuple(int(shape[axis]) for axis in np.argsort(turn[:, 0]))
    middle = (np.array(sides) - 1) / 2
    shift = turned[:3, :3] @ middle + turned[:3, 3] - middle
    spread = np.abs(turned[:3, :3] - np.eye(3)) @ middle
    # Directions of the axes, each column of length 1; the trace of a rotation is 1 + 2·cos(angle).
    ours, theirs = ((axes / np.linalg.norm(axes, axis=0))[:3, :3] for axes in (grid @ turned, grid))
    angle = np.degrees(np.arccos(np.clip((np.trace(ours.T @ theirs) - 1) / 2, -1, 1)))
    distance = np.linalg.norm(grid[:3, :3] @ (np.abs(shift) + spread))
    shift, spread = np.nan_to_num(shift, nan=np.inf), np.nan_to_num(spread, nan=np.inf)
    return Fit(turn, sides, shift, spread, float(angle), float(distance))


@np.errstate(all="ignore")
def is_nowhere(affine: np.ndarray, shape: Sequence[int]) -> bool:
    """Whether a program that knows no place may have written this: the first voxel or the middle lies at 0, 0, 0."""
    sizes = nib.affines.voxel_sizes(affine)
    straight = np.count_nonzero(np.abs(affine[:3, :3]) > 1e-4 * sizes) == 3
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    return bool(straight and (np.abs(affine[:3, 3]).max() < 1e-3 or np.abs(middle).max() < 0.51 * sizes.max()))


@np.errstate(all="ignore")
def differences(found: Fit, affine: np.ndarray, grid: np.ndarray, its: str, those: str) -> str:
    """In words, how a volume's place differs from another grid. its, those: what words call the two."""
    words = []
    sizes = nib.affines.voxel_sizes(affine), nib.affines.voxel_sizes(grid)
    if found.is_turned:
        words.append(f"{its} axes run to {axes_of(affine)}, those of {those} to {axes_of(grid)}")
    if found.spread.max() > ROUNDING:
        if np.allclose(sizes[0][np.argsort(found.turn[:, 0])], sizes[1], rtol=1e-4):
            words.append(f"{its} axes are turned by {found.angle:.2g}° against those of {those}")
        else:
            words.append(f"{its} voxels have {format_sizes(sizes[0])} mm, those of {those} {format_sizes(sizes[1])} mm")
    if not words or np.abs(found.shift).max() > ROUNDING:
        words.append(f"the places differ by {np.linalg.norm(grid[:3, :3] @ found.shift):.3g} mm")
    return ", ".join(words)


def axes_of(affine: np.ndarray) -> str:
    """The directions that axes of voxels run to, as in LPS: to the patient's left, back and head."""
    return "".join(nib.aff2axcodes(affine))


def format_sizes(sizes: Iterable[float]) -> str:
    return "×".join(f"{mm:.6g}" for mm in sizes)

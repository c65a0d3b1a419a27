"""Place of a file's voxels in mm: what its header states, and how its voxel grid lies on that of another file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from dnnlib.errors import UserError

ROUNDING = 0.05  # voxels; headers of files on one grid may differ by so little through rounding
SAME = 0.4  # voxels; grids that differ by less count as one; half a voxel makes another grid
_UNTURNED = np.array([(0, 1), (1, 1), (2, 1)], float)  # nibabel's orientation that leaves axes as they are


class Place(NamedTuple):
    """The place of a file's voxels, as the header states it."""

    affine: np.ndarray  # voxels -> mm, 4×4, invertible
    oriented: bool  # whether the header states an orientation at all
    rival: np.ndarray | None = None  # a second affine of the same header that contradicts the first
    remarks: tuple[str, ...] = ()  # oddities, in words


def has_axes(affine: np.ndarray) -> bool:
    """Whether an affine, 4×4, is invertible and maps every voxel axis to an anatomical axis of its own."""
    # nibabel gives NaN for a voxel axis that it can assign to no anatomical axis.
    return bool(
        np.isfinite(affine).all()
        and abs(np.linalg.det(affine)) >= 1e-9
        and not np.isnan(nib.io_orientation(affine)).any()
    )


@np.errstate(all="ignore")  # absurd headers give infinities and NaN, which `has_axes` refuses
def place_of(header: Any, shape: Sequence[int]) -> Place:
    """The place that a NIfTI header states for a volume: its sform, else its qform, else what nibabel assumes.

    Raises UserError if nothing usable is stated.
    """
    stated = [name for name in ("sform", "qform") if header[f"{name}_code"] > 0]
    found = {name: affine for name in stated if (affine := _transform(header, name)) is not None}
    if not stated:
        affine = header.get_base_affine()
        if not has_axes(affine):
            raise UserError("the header states no orientation, and its voxel sizes are impossible; mend the header")
        return Place(affine, oriented=False)
    if not found:
        what = " and ".join(stated)
        raise UserError(f"the header's {what} can't be inverted, so the orientation is unknown; mend the header")
    # `found` keeps the order of `stated`: the sform is taken if it is usable.
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
    """Whether two affines of one header put the same voxels into different places."""
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
    """How a volume lies on another grid, once its axes are flipped and permuted to run like the grid's axes."""

    turn: np.ndarray  # [3, 2], nibabel's orientation: the flips and the permutation
    shape: tuple[int, ...]  # of the volume after `turn`
    shift: np.ndarray  # [3]: offset of the volume's middle, in voxels along the axes of the grid
    spread: np.ndarray  # [3]: additional offset at its ends; 0 where voxel sizes and directions agree
    angle: float  # degrees between the directions of the axes
    distance: float  # mm; the largest offset of any voxel

    @property
    def is_turned(self) -> bool:
        """Whether any axis must be flipped or permuted."""
        return not np.array_equal(self.turn, _UNTURNED)

    @property
    def off(self) -> float:
        """The largest offset of any voxel along an axis, in voxels."""
        return float((np.abs(self.shift) + self.spread).max())


@np.errstate(all="ignore")
def fit(affine: np.ndarray, shape: Sequence[int], grid: np.ndarray) -> Fit:
    """How a volume of this affine and shape lies on a grid, given as its affine. Both must be invertible."""
    relative = np.linalg.inv(grid) @ affine  # [4, 4]: voxels of the volume -> voxels of the grid
    # Where no orientation can be found, the axes stay as they are, and the offsets below tell that nothing fits.
    turn = nib.io_orientation(relative) if np.isfinite(relative).all() else _UNTURNED
    turn = _UNTURNED if np.isnan(turn).any() else turn
    turned = relative @ nib.orientations.inv_ornt_aff(turn, shape)
    # Row i of `turn` names the grid's axis for the volume's axis i. Sorting by it gives the inverse permutation.
    sides = tuple(int(shape[axis]) for axis in np.argsort(turn[:, 0]))
    middle = (np.array(sides) - 1) / 2  # [3]
    # Were the grids the same, `turned` would be the identity. Its error is `shift` in the middle; towards the corners
    # it grows linearly, by up to `spread`.
    shift = turned[:3, :3] @ middle + turned[:3, 3] - middle
    spread = np.abs(turned[:3, :3] - np.eye(3)) @ middle
    # Directions of the axes: [3, 3] each, with columns of length 1. The trace of a rotation is 1 + 2·cos(angle).
    ours, theirs = ((axes / np.linalg.norm(axes, axis=0))[:3, :3] for axes in (grid @ turned, grid))
    angle = np.degrees(np.arccos(np.clip((np.trace(ours.T @ theirs) - 1) / 2, -1, 1)))
    distance = np.linalg.norm(grid[:3, :3] @ (np.abs(shift) + spread))
    shift, spread = np.nan_to_num(shift, nan=np.inf), np.nan_to_num(spread, nan=np.inf)
    return Fit(turn, sides, shift, spread, float(angle), float(distance))


@np.errstate(all="ignore")
def is_nowhere(affine: np.ndarray, shape: Sequence[int]) -> bool:
    """Whether an affine looks made up: programs that don't know the place put the first voxel or the middle at 0."""
    sizes = nib.affines.voxel_sizes(affine)
    # Three numbers other than 0 in the matrix: the axes run straight along the axes of the world.
    straight = np.count_nonzero(np.abs(affine[:3, :3]) > 1e-4 * sizes) == 3
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    return bool(straight and (np.abs(affine[:3, 3]).max() < 1e-3 or np.abs(middle).max() < 0.51 * sizes.max()))


@np.errstate(all="ignore")
def differences(
    found: Fit,
    affine: np.ndarray,
    grid: np.ndarray,
    its: str,  # what the words call the volume, as a possessive
    those: str,  # what the words call the grid
) -> str:
    """Describe how a volume's place differs from a grid."""
    words = []
    sizes = nib.affines.voxel_sizes(affine), nib.affines.voxel_sizes(grid)
    if found.is_turned:
        words.append(f"{its} axes run to {axes_of(affine)}, those of {those} to {axes_of(grid)}")
    if found.spread.max() > ROUNDING:
        # The volume's voxel sizes, in the order of the grid's axes.
        if np.allclose(sizes[0][np.argsort(found.turn[:, 0])], sizes[1], rtol=1e-4):
            words.append(f"{its} axes are turned by {found.angle:.2g}° against those of {those}")
        else:
            words.append(f"{its} voxels have {format_sizes(sizes[0])} mm, those of {those} {format_sizes(sizes[1])} mm")
    if not words or np.abs(found.shift).max() > ROUNDING:
        words.append(f"the places differ by {np.linalg.norm(grid[:3, :3] @ found.shift):.3g} mm")
    return ", ".join(words)


def axes_of(affine: np.ndarray) -> str:
    """Letters for the directions that the voxel axes run to, such as LPS: to the patient's left, back and head."""
    return "".join(nib.aff2axcodes(affine))


def format_sizes(sizes: Iterable[float]) -> str:
    """Voxel sizes in words, such as "1×1×2.5"."""
    return "×".join(f"{mm:.6g}" for mm in sizes)

"""Files of a case → volumes on one voxel grid, in one orientation.

In memory a volume is a stack of pictures, [S, P, L]: slices from feet to head, rows from front to back, columns from
the patient's right to left. Pictures are shown like this in radiology: nose up, the patient's left on the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage

from dnnlib.errors import UserError
from dnnlib.text import count
from slices.affine import ROUNDING, SAME, Fit, Place, axes_of, differences, fit, is_nowhere
from slices.convert.cases import Case
from slices.nifti import Nifti, format_shape, read_channels, read_nifti
from slices.orientation import Orientation
from slices.schema import Schema

EDGE = 3  # voxels; so deep in the head a contrast may lack values, if each was skull-stripped by itself
CONTRAST, LABELS, HEAD = "contrast", "labels", "head"  # kinds of files
_COARSEST_STEP = 0.5  # between the values of a file; larger steps can't tell a whole number from the next
_FLOAT_NOISE = 1e-5  # relative rounding error that a label may have


class Nan(NamedTuple):
    """Voxels of a file that were NaN. They now have the value of the background."""

    path: Path
    name: str  # what messages call the file
    voxels: np.ndarray  # bool [S, P, L]


@dataclass(frozen=True)
class CaseVolumes:
    """The volumes of a case as stacks of pictures, and the voxel grid of the files."""

    contrasts: tuple[np.ndarray, ...]  # C of [S, P, L], with the files' types and intensities
    labels: np.ndarray  # class indices, uint8 [S, P, L]; all 0 for a schema without classes
    spacing: tuple[float, float, float]  # mm between voxels along S, P, L
    shape: tuple[int, int, int]  # of the files, in their axes
    affine: np.ndarray  # of the files, 4×4
    remarks: tuple[str, ...]  # oddities that the user should know about
    nan: tuple[Nan, ...] = ()  # to be judged once the head is known
    counted: Mapping[str, int] = field(default_factory=dict)  # remark -> number of voxels
    head: np.ndarray | None = None  # the head mask, if one was given, bool [S, P, L]


@dataclass(frozen=True)
class _File:
    """A file, or one channel of it, as it was read."""

    path: Path
    name: str  # what messages call it
    nifti: Nifti
    kind: str  # CONTRAST, LABELS or HEAD

    @property
    def shape(self) -> tuple[int, int, int]:
        x, y, z = self.nifti.voxels.shape
        return x, y, z

    @property
    def place(self) -> Place:
        return self.nifti.place


class _Volume(NamedTuple):
    """The voxels of a file on the grid of the case."""

    file: _File
    voxels: np.ndarray  # in the axes of the grid, without NaN
    nan: np.ndarray | None  # voxels that were NaN, bool; None if there were none, or if they don't matter
    remarks: list[str]


def read_case(case: Case, schema: Schema) -> CaseVolumes:
    """Read the files of a case. They must share one voxel grid, but their axes may differ.

    Raises UserError naming the file if one is missing, damaged, on another grid than the others, or has a label value
    that the schema doesn't know.
    """
    case.require_files()
    files = _without_rivals(_read_files(case))
    grid = _most_shared([file for file in files if file.kind == CONTRAST], files)
    affine = grid.place.affine
    volumes = [_on_grid_without_nan(file, grid, published=case.grid == grid.shape) for file in files]
    labels, ignored = np.zeros(grid.shape, np.uint8, order="F"), 0  # NIfTI files are in Fortran order
    head = None
    for volume in volumes:
        if volume.file.kind == LABELS:
            labels, ignored = _class_indices(volume.file, volume.voxels, schema)
        elif volume.file.kind == HEAD:
            head = volume.voxels != 0
            if not head.any():
                raise UserError(f"{case.head}: expected a mask of the head, but every voxel is 0")
    odd = [(remark, volume.file.name) for volume in volumes for remark in volume.remarks]
    # voxel_sizes gives mm along L, P, S; pictures have the reverse order.
    s, p, l = nib.affines.voxel_sizes(Orientation.of(affine).affine_lps(affine, grid.shape))[::-1]
    return CaseVolumes(
        contrasts=tuple(_pictures(volume.voxels, affine) for volume in volumes if volume.file.kind == CONTRAST),
        labels=_pictures(labels, affine),
        spacing=(float(s), float(p), float(l)),
        shape=grid.shape,
        affine=affine,
        remarks=(*_remarks_on_grid(case, grid), *_by_files(odd, {file.name for file in files})),
        nan=tuple(Nan(v.file.path, v.file.name, _pictures(v.nan, affine)) for v in volumes if v.nan is not None),
        counted={"label values that are ignored, taken as background": ignored} if ignored else {},
        head=None if head is None else _pictures(head, affine),
    )


def _on_grid_without_nan(file: _File, grid: _File, published: bool) -> _Volume:
    """Bring a file onto the grid, and replace NaN. published: see `_on_grid`."""
    voxels, remarks = _on_grid(file, grid, published)
    remarks, nan = [*file.nifti.remarks, *remarks], None
    if voxels.dtype.kind == "f" and (places := np.isnan(voxels)).any():
        remarks.append(f"{count(int(np.count_nonzero(places)), 'voxel')} of NaN taken as background")
        if file.kind == CONTRAST or (voxels == 0).any():  # else a mask in which NaN stands for 0
            nan = places
        voxels = np.where(places, _background(voxels) if file.kind == CONTRAST else np.float32(0), voxels)
    return _Volume(file, voxels, nan, remarks)


def _remarks_on_grid(case: Case, grid: _File) -> list[str]:
    """Remarks on a header without orientation, and on an unusual shape."""
    remarks = [] if grid.place.oriented else ["no orientation in the header, axes assumed to run to L, A, S"]
    if case.grid is not None and grid.shape != case.grid:
        remarks.append(f"the release's volumes have {format_shape(case.grid)} voxels, these don't: is it another one?")
    return remarks


def _by_files(odd: Sequence[tuple[str, str]], names: set[str]) -> list[str]:
    """Join equal remarks on files: each comes once, with the names of its files, or with "all files".

    odd: (remark, name of a file). names: of all files.
    """
    files: dict[str, dict[str, None]] = {}  # remark -> names; a dict is a set that keeps the order
    for remark, name in odd:
        files.setdefault(remark, {})[name] = None
    return [
        f"{'all files' if 1 < len(names) == len(concerned) else ', '.join(concerned)}: {remark}"
        for remark, concerned in files.items()
    ]


def judge_nan(volumes: CaseVolumes, head: np.ndarray) -> list[str]:
    """Remarks on NaN at the edge of the head. head: bool [S, P, L].

    Raises UserError naming the file if NaN is enclosed by the head, or lies deeper in it than EDGE.
    """
    remarks = []
    for path, name, places in volumes.nan:
        if not (inside := places & head).any():
            continue
        pieces, _ = ndimage.label(places)
        enclosed = ~np.isin(pieces, np.unique(pieces[~head]))  # pieces of NaN that don't reach out of the head
        edge = min(EDGE, max(1, len(head) // 8))  # less for few slices: otherwise all of them would be edge
        wrong = inside & (enclosed | ndimage.binary_erosion(head, iterations=edge))
        if wrong.any():
            where = f"in {count(int(np.count_nonzero(wrong)), 'voxel')}"
            raise UserError(f"{path}: NaN in the head, {where}; repair the file or leave the case out")
        remarks.append(f"{name}: {count(int(np.count_nonzero(inside)), 'voxel')} of NaN at the edge of the head")
    return remarks


def _read_files(case: Case) -> list[_File]:
    """Read the contrasts in the order of the schema, then the masks of lesions and of the head, if there are any.

    Contrasts are separate files, or channels of one 4-D file.
    """
    first, names = case.contrasts[0], case.short_names
    channels = [] if first.channel is None else read_channels(first.path, len(case.contrasts))
    files = [
        _File(path, names[path], read_nifti(path) if channel is None else channels[channel], CONTRAST)
        for path, channel in case.contrasts
    ]
    for path, kind in ((case.mask, LABELS), (case.head, HEAD)):
        if path is not None:
            files.append(_File(path, names[path], read_nifti(path), kind))
    return files


# --- one grid -------------------------------------------------------------------------------------------------------


def _share_grid(file: _File, grid: _File) -> bool:
    """Whether two files have the same voxel grid, in any axes. Both or neither must state an orientation."""
    found = fit(file.place.affine, file.shape, grid.place.affine)
    return found.shape == grid.shape and found.off <= SAME and file.place.oriented == grid.place.oriented


def _most_shared(files: Sequence[_File], among: Sequence[_File]) -> _File:
    """The file whose grid is shared by most files in `among`. In a tie, the first that states an orientation."""
    # max compares (number of files, whether oriented) and returns the first of equal ones.
    return max(files, key=lambda file: (sum(_share_grid(other, file) for other in among), file.place.oriented))


def _without_rivals(files: list[_File]) -> list[_File]:
    """Decide between sform and qform in files where they contradict each other, with a remark.

    The sform is taken, unless only the qform agrees with the other files.
    """
    sure = [file for file in files if file.place.rival is None and file.place.oriented]
    grid = _most_shared(sure, sure) if sure else None
    return [_decided(file, grid) for file in files]


def _decided(file: _File, grid: _File | None) -> _File:
    """Decide for one file. grid: a file that stands for the others; None if none is sure."""
    sform, qform = file.place.affine, file.place.rival
    if qform is None:
        return file
    # For sform and for qform: whether it puts the voxels on the grid of the other files without turning axes.
    as_stored: list[bool] = []
    if grid is not None:
        found = [fit(affine, file.shape, grid.place.affine) for affine in (sform, qform)]
        as_stored = [f.shape == grid.shape and f.off <= SAME and not f.is_turned for f in found]
    taken = "qform" if as_stored == [False, True] else "sform"
    why = ", as in the other files" if len(set(as_stored)) == 2 else ""  # one True and one False
    how = differences(fit(sform, file.shape, qform), sform, qform, "the sform's", "the qform")
    remark = f"sform and qform contradict each other ({how}); {taken} taken{why}"
    place = Place(qform if taken == "qform" else sform, oriented=True)
    return replace(file, nifti=replace(file.nifti, place=place, remarks=(*file.nifti.remarks, remark)))


def _on_grid(file: _File, grid: _File, published: bool) -> tuple[np.ndarray, list[str]]:
    """A file's voxels in the axes of the grid, and remarks. Programs may have saved them in other axes.

    published: the shape is that of the release, where all files of a case are stored on one grid. Raises UserError if
    the voxels don't lie on the grid.
    """
    name, voxels = grid.name, file.nifti.voxels
    found = fit(file.place.affine, file.shape, grid.place.affine)
    alike = file.place.oriented == grid.place.oriented
    # The usual case: one grid, perhaps with turned axes.
    if alike and found.shape == grid.shape and found.off <= SAME:
        odd = [f"lies {found.distance:.2g} mm off {name}, voxels taken as on its grid"] if found.off > ROUNDING else []
        return nib.orientations.apply_orientation(voxels, found.turn), odd
    # One of the headers states no orientation. Voxels of the same shape are taken as they are stored.
    if file.shape == grid.shape and not alike and (file.kind != CONTRAST or not found.is_turned):
        bare = "its header" if grid.place.oriented else f"the header of {name}"
        return voxels, [f"{bare} states no orientation, voxels taken as on the grid of {name}"]
    if file.shape == grid.shape and _is_lost(file, found, published):
        how = differences(found, file.place.affine, grid.place.affine, "its", name)
        return voxels, [f"its header knows no place ({how}), voxels taken as on the grid of {name}"]
    # Nothing helps: tell how the grids differ.
    if found.shape != grid.shape:
        what = f"{format_shape(file.shape)} voxels, but {name} has {format_shape(grid.shape)}"
    elif alike:
        what = differences(found, file.place.affine, grid.place.affine, "its", name)
    elif grid.place.oriented:
        what = f"its header states no orientation; the axes of {name} run to {axes_of(grid.place.affine)}"
    else:
        what = f"its axes run to {axes_of(file.place.affine)}; the header of {name} states no orientation"
    advice = "the files of a case must share one grid"
    if file.shape == grid.shape:
        mended = f"this file the header of {name}" if grid.place.oriented else f"{name} the header of this file"
        advice += f"; if their voxels do, give {mended}"
    raise UserError("; ".join([f"{file.path}: {what}", *file.nifti.remarks, advice]))


def _is_lost(file: _File, found: Fit, published: bool) -> bool:
    """Whether the place in a header is lost: its axes are right, but the place is made up, or beside the grid.

    In a published file with a made-up place, wrong axes don't matter either, because programs that don't know the axes
    write an identity.
    """
    # Off by a whole volume or more: the two volumes don't overlap.
    beside = bool((np.abs(found.shift) >= found.shape).any()) and not found.is_turned
    nowhere = is_nowhere(file.place.affine, file.shape) and (published or not found.is_turned)
    identity = nowhere and np.allclose(nib.affines.voxel_sizes(file.place.affine), 1)
    return (beside or nowhere) and (identity or found.spread.max() <= SAME)


def _background(voxels: np.ndarray) -> np.float32:
    """The value to replace NaN with: that of the background that isn't NaN, or else one below any head."""
    seen = voxels[~np.isnan(voxels)]
    # The most frequent value of every 8th voxel is the background if it is frequent enough.
    values, counts = np.unique(seen[::8], return_counts=True)
    return values[counts.argmax()] if counts.max() >= counts.sum() / 4 else min(np.float32(0), seen.min())


# --- pictures -------------------------------------------------------------------------------------------------------


def _pictures(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A volume in any axes -> [S, P, L]. Axes are flipped and permuted; nothing is interpolated.

    The result is contiguous in memory. For files of BraTS it is a view.
    """
    # [L, P, S] -> [S, P, L]; numbers in a foreign byte order become native ones.
    turned = Orientation.of(affine).to_lps(voxels).T
    return np.ascontiguousarray(turned.astype(turned.dtype.newbyteorder("="), copy=False))


def _class_indices(file: _File, voxels: np.ndarray, schema: Schema) -> tuple[np.ndarray, int]:
    """Label values -> class indices, uint8 of the same shape, and the number of voxels that the schema ignores.

    Only voxels other than 0 are looked up: lesions are a thousandth of all voxels.
    """
    indices = np.zeros(voxels.shape, np.uint8, order="F")
    try:
        if voxels.dtype.kind == "f":
            voxels = _whole_numbers(voxels, file.nifti.step)
        places = voxels.astype(bool).nonzero()  # as booleans, which is faster
        indices[places] = schema.indices_from_values(voxels[places])
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from None
    return indices, len(places[0]) - int(np.count_nonzero(indices))


def _whole_numbers(voxels: np.ndarray, step: float) -> np.ndarray:
    """Round labels to whole numbers. Arithmetic, or the steps of a scaled file, may have moved them a little.

    step: see Nifti.step. Raises UserError for values too far from a whole number.
    """
    whole = np.rint(voxels)
    odd = voxels != whole
    values = voxels[odd]
    # Half a step in a scaled file, if the steps are small enough, plus rounding. Never more than 0.25.
    if step:
        allowed = 0.51 * step * (step < _COARSEST_STEP) + _FLOAT_NOISE / 10 * np.abs(voxels).max()
    else:
        allowed = _FLOAT_NOISE * np.maximum(1, np.abs(values))
    if (fractions := values[np.abs(values - whole[odd]) > np.minimum(allowed, 0.25)]).size:
        raise UserError(f"a label map holds whole numbers, but this one has {fractions[0]!s}")
    return whole

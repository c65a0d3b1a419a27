"""One case of a release, read in a common orientation.

In memory every volume is a stack of pictures, [S, P, L]: slices from feet to head, rows from front to back, columns
from the patient's right to left. So a picture stands as radiologists see it: nose up, patient's left on the right.
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
from slices.convert.cases import Case
from slices.nifti import Nifti, format_shape, read_channels, read_nifti
from slices.orientation import Orientation
from slices.place import ROUNDING, SAME, Fit, Place, axes_of, differences, fit, is_nowhere
from slices.schema import Schema

EDGE = 3  # voxels deep in the head, which contrasts that were stripped of the skull one by one may lack
_COARSEST_STEP = 0.5  # between values of a file; in coarser ones a value tells no whole number from the next
_FLOAT_NOISE = 1e-5  # of a label, by which arithmetic may miss a whole number


class Nan(NamedTuple):
    """The voxels of a file that are NaN, bool [S, P, L]; the background's value stands in their place."""

    path: Path
    name: str
    voxels: np.ndarray


@dataclass(frozen=True)
class CaseVolumes:
    """The volumes of a case as stacks of pictures, and the grid that the files had.

    contrasts: C of [S, P, L], in the files' numbers and intensities; labels: class indices, uint8 [S, P, L], all 0 for
    a schema without classes; spacing: mm between voxels along S, P, L; shape, affine: the files'; remarks: oddities
    that the user should know of; nan: to be judged once the head is known; counted: remark -> voxels; head: the given
    mask of the head, bool [S, P, L].
    """

    contrasts: tuple[np.ndarray, ...]
    labels: np.ndarray
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    affine: np.ndarray
    remarks: tuple[str, ...]
    nan: tuple[Nan, ...] = ()
    counted: Mapping[str, int] = field(default_factory=dict)
    head: np.ndarray | None = None


@dataclass(frozen=True)
class _File:
    """A contrast or the label map, as it is read, where from, and what words call it."""

    path: Path
    name: str
    nifti: Nifti
    is_mask: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.nifti.voxels.shape

    @property
    def place(self) -> Place:
        return self.nifti.place


def read_case(case: Case, schema: Schema) -> CaseVolumes:
    """Read the files of a case. They must share one grid, in any axes: those of the first contrast hold for all.

    Raises UserError naming the file that is missing, damaged, on another grid than the others, or that holds a label
    value that the schema doesn't know.
    """
    case.require_files()
    files = _without_rivals(_read_files(case))
    grid = _most_shared([file for file in files if not file.is_mask], files)
    volumes, nan, odd, ignored = [], [], [], 0
    for file in files:
        voxels, remarks = _on_grid(file, grid, published=case.grid == grid.shape)
        if voxels.dtype.kind == "f" and (places := np.isnan(voxels)).any():
            remarks.append(f"{count(np.count_nonzero(places), 'voxel')} of NaN taken as background")
            if not file.is_mask or (voxels == 0).any():  # a mask without any 0 has NaN in its place
                nan.append(Nan(file.path, file.name, _pictures(places, grid.place.affine)))
            voxels = np.where(places, np.float32(0) if file.is_mask else _background(voxels), voxels)
        if case.mask is not None and len(volumes) == len(case.contrasts):  # after the contrasts
            voxels, ignored = _class_indices(file, voxels, schema)
        volumes.append(voxels)
        odd += [(remark, file.name) for remark in (*file.nifti.remarks, *remarks)]
    head = volumes.pop() != 0 if case.head is not None else None
    if head is not None and not head.any():
        raise UserError(f"{case.head}: expected a mask of the head, but every voxel is 0")
    labels = volumes.pop() if case.mask is not None else np.zeros(grid.shape, np.uint8, order="F")
    affine = Orientation.of(grid.place.affine).affine_lps(grid.place.affine, grid.shape)
    return CaseVolumes(
        contrasts=tuple(_pictures(voxels, grid.place.affine) for voxels in volumes),
        labels=_pictures(labels, grid.place.affine),
        spacing=tuple(float(mm) for mm in nib.affines.voxel_sizes(affine)[::-1]),
        shape=grid.shape,
        affine=grid.place.affine,
        remarks=(*_remarks_on_grid(case, grid), *_by_files(odd, {file.name for file in files})),
        nan=tuple(nan),
        counted={"label values that are ignored, taken as background": ignored} if ignored else {},
        head=None if head is None else _pictures(head, grid.place.affine),
    )


def _remarks_on_grid(case: Case, grid: _File) -> list[str]:
    remarks = [] if grid.place.oriented else ["no orientation in the header, axes assumed to run to L, A, S"]
    if case.grid is not None and grid.shape != case.grid:
        remarks.append(f"the release's volumes have {format_shape(case.grid)} voxels, these don't: is it another one?")
    return remarks


def _by_files(odd: Sequence[tuple[str, str]], names: set[str]) -> list[str]:
    """Remarks, each with the names of the files that it is true of; the same words for cases with the same in all."""
    files: dict[str, dict[str, None]] = {}
    for remark, name in odd:
        files.setdefault(remark, {})[name] = None
    return [
        f"{'all files' if 1 < len(names) == len(concerned) else ', '.join(concerned)}: {remark}"
        for remark, concerned in files.items()
    ]


def judge_nan(volumes: CaseVolumes, head: np.ndarray) -> list[str]:
    """Remarks on NaN at the edge of the head, bool [S, P, L], where other contrasts show it.

    Raises UserError naming the file if NaN is enclosed by the head, or deeper in it than EDGE.
    """
    remarks = []
    for path, name, places in volumes.nan:
        if not (inside := places & head).any():
            continue
        parts, _ = ndimage.label(places)
        enclosed = ~np.isin(parts, np.unique(parts[~head]))  # no way of NaN leads out of the head
        edge = min(EDGE, max(1, len(head) // 8))  # a stack of few slices is edge all through
        wrong = inside & (enclosed | ndimage.binary_erosion(head, iterations=edge))
        if wrong.any():
            where = f"in {count(np.count_nonzero(wrong), 'voxel')}"
            raise UserError(f"{path}: NaN in the head, {where}; repair the file or leave the case out")
        remarks.append(f"{name}: {count(np.count_nonzero(inside), 'voxel')} of NaN at the edge of the head")
    return remarks


def _read_files(case: Case) -> list[_File]:
    """The contrasts in the order of the schema, from files of their own or out of one 4-D file, then the masks of
    lesions and of the head."""
    first, names = case.contrasts[0], case.short_names
    if first.channel is None:
        files = [_File(path, names[path], read_nifti(path)) for path, _ in case.contrasts]
    else:
        whole = read_channels(first.path, len(case.contrasts))
        files = [_File(path, names[path], whole[channel]) for path, channel in case.contrasts]
    masks = [path for path in (case.mask, case.head) if path is not None]
    return files + [_File(path, names[path], read_nifti(path), is_mask=True) for path in masks]


# --- one grid -------------------------------------------------------------------------------------------------------


def _share_grid(file: _File, grid: _File) -> bool:
    found = fit(file.place.affine, file.shape, grid.place.affine)
    return found.shape == grid.shape and found.off <= SAME and file.place.oriented == grid.place.oriented


def _most_shared(files: Sequence[_File], among: Sequence[_File]) -> _File:
    """That of `files` whose grid most of the others have; of several, the first that states an orientation."""
    return max(files, key=lambda file: (sum(_share_grid(other, file) for other in among), file.place.oriented))


def _without_rivals(files: list[_File]) -> list[_File]:
    """The files, each with one place; a remark tells of those whose headers contradict themselves.

    Of sform and qform the first is taken, unless the second alone is that of the other files.
    """
    sure = [file for file in files if file.place.rival is None and file.place.oriented]
    grid = _most_shared(sure, sure) if sure else None
    return [file if file.place.rival is None else _decided(file, grid) for file in files]


def _decided(file: _File, grid: _File | None) -> _File:
    sform, qform = file.place.affine, file.place.rival
    found = [fit(affine, file.shape, grid.place.affine) for affine in (sform, qform)] if grid else []
    as_stored = [f.shape == grid.shape and f.off <= SAME and not f.is_turned for f in found]
    taken = "qform" if as_stored == [False, True] else "sform"
    why = ", as in the other files" if len(set(as_stored)) == 2 else ""
    how = differences(fit(sform, file.shape, qform), sform, qform, "the sform's", "the qform")
    remark = f"sform and qform contradict each other ({how}); {taken} taken{why}"
    place = Place(qform if taken == "qform" else sform, oriented=True)
    return replace(file, nifti=replace(file.nifti, place=place, remarks=(*file.nifti.remarks, remark)))


def _on_grid(file: _File, grid: _File, published: bool) -> tuple[np.ndarray, list[str]]:
    """A file's voxels in the axes of the grid, for programs may save them in others, and what is odd in that.

    published: the files are a release's, as many voxels say; all of those are stored on one grid.
    Raises UserError if they don't lie on the grid.
    """
    name, voxels = grid.name, file.nifti.voxels
    found = fit(file.place.affine, file.shape, grid.place.affine)
    alike = file.place.oriented == grid.place.oriented
    if alike and found.shape == grid.shape and found.off <= SAME:
        odd = [f"lies {found.distance:.2g} mm off {name}, voxels taken as on its grid"] if found.off > ROUNDING else []
        return nib.orientations.apply_orientation(voxels, found.turn), odd
    if file.shape == grid.shape and not alike and (file.is_mask or not found.is_turned):
        bare = "its header" if grid.place.oriented else f"the header of {name}"
        return voxels, [f"{bare} states no orientation, voxels taken as on the grid of {name}"]
    if file.shape == grid.shape and _is_lost(file, found, published):
        how = differences(found, file.place.affine, grid.place.affine, "its", name)
        return voxels, [f"its header knows no place ({how}), voxels taken as on the grid of {name}"]
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
    """Whether a header says nothing of the place: in axes that are right, it puts the voxels nowhere, or beside all
    others. Nowhere, a published file's axes say nothing either, for what writes an identity knows of none.
    """
    beside = bool((np.abs(found.shift) >= found.shape).any()) and not found.is_turned
    nowhere = is_nowhere(file.place.affine, file.shape) and (published or not found.is_turned)
    identity = nowhere and np.allclose(nib.affines.voxel_sizes(file.place.affine), 1)
    return (beside or nowhere) and (identity or found.spread.max() <= SAME)


def _background(voxels: np.ndarray) -> np.float32:
    """What to put in the place of NaN: the value of a background of another kind, or what no head is darker than."""
    seen = voxels[~np.isnan(voxels)]
    values, counts = np.unique(seen[::8], return_counts=True)
    return values[counts.argmax()] if counts.max() >= counts.sum() / 4 else min(np.float32(0), seen.min())


# --- pictures -------------------------------------------------------------------------------------------------------


def _pictures(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A volume in any axes -> [S, P, L]; axes are turned round and exchanged, never interpolated.

    Rows of the result lie together in memory; for BraTS's files it is a view.
    """
    turned = Orientation.of(affine).to_lps(voxels).T
    return np.ascontiguousarray(turned.astype(turned.dtype.newbyteorder("="), copy=False))


def _class_indices(file: _File, voxels: np.ndarray, schema: Schema) -> tuple[np.ndarray, int]:
    """Label values -> class indices, uint8 of the same shape, and how many voxels the schema ignores.

    Looks at lesions only, a thousandth of the voxels.
    """
    indices = np.zeros(voxels.shape, np.uint8, order="F")
    try:
        if voxels.dtype.kind == "f":
            voxels = _whole_numbers(voxels, file.nifti.step)
        places = voxels.astype(bool).nonzero()
        indices[places] = schema.indices_from_values(voxels[places])
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from None
    return indices, len(places[0]) - int(np.count_nonzero(indices))


def _whole_numbers(voxels: np.ndarray, step: float) -> np.ndarray:
    """Labels without what arithmetic, or the steps between the values of a scaled file, added to whole numbers."""
    whole = np.rint(voxels)
    odd = voxels != whole
    values = voxels[odd]
    if step:
        allowed = 0.51 * step * (step < _COARSEST_STEP) + _FLOAT_NOISE / 10 * np.abs(voxels).max()
    else:
        allowed = _FLOAT_NOISE * np.maximum(1, np.abs(values))
    if (fractions := values[np.abs(values - whole[odd]) > np.minimum(allowed, 0.25)]).size:
        raise UserError(f"a label map holds whole numbers, but this one has {fractions[0]!s}")
    return whole

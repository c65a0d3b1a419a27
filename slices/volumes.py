"""One case of a release, read in a common orientation.

In memory every volume is a stack of pictures, [S, P, L]: slices from feet to head, rows from front to back, columns
from the patient's right to left. So a picture stands as radiologists see it: nose up, patient's left on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from dnnlib.errors import UserError
from slices.cases import Case
from slices.nifti import Nifti, format_shape, read_nifti
from slices.schema import Schema


@dataclass(frozen=True)
class CaseVolumes:
    """The volumes of a case as stacks of pictures, and the grid that the files had.

    contrasts: C of [S, P, L], in the files' numbers and intensities; labels: class indices, uint8 [S, P, L], all 0 for
    a schema without classes; spacing: mm between voxels along S, P, L; shape, affine: the files'; remarks: oddities
    that the user should know of.
    """

    contrasts: tuple[np.ndarray, ...]
    labels: np.ndarray
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    affine: np.ndarray
    remarks: tuple[str, ...]


def read_case(case: Case, schema: Schema) -> CaseVolumes:
    """Read the files of a case. The first contrast's affine holds for all: they must share one grid.

    Raises UserError naming the file that is missing, damaged, of another shape or orientation, or that holds a label
    value that the schema doesn't know.
    """
    case.require_files()
    first, *others = _read_contrasts(case)
    contrasts = [first, *(_turned_like(first, other) for other in others)]
    mask = None if case.mask is None else _turned_like(first, read_nifti(case.mask))
    first_path = case.contrasts[0].path
    shape = first.voxels.shape
    remarks = [] if first.oriented else ["no orientation in the header, axes assumed to run to L, A, S"]
    if case.grid is not None and shape != case.grid:
        remarks.append(f"the release's volumes have {format_shape(case.grid)} voxels, these don't: is it another one?")
    named = list(zip((file.path for file in case.contrasts), contrasts, strict=True))
    for path, file in [*named, *([(case.mask, mask)] if mask else [])]:
        if file.voxels.shape != shape:
            raise UserError(
                f"{path}: {format_shape(file.voxels.shape)} voxels, but {first_path.name} has "
                f"{format_shape(shape)}; the files of a case must share one grid"
            )
        if np.allclose(file.affine, first.affine, atol=1e-3):
            continue
        axes, first_axes = ("".join(nib.aff2axcodes(f.affine)) for f in (file, first))
        if file is not mask and axes != first_axes:
            raise UserError(
                f"{path}: its axes run to {axes}, those of {first_path.name} to {first_axes}; "
                "the files of a case must share one grid"
            )
        sizes, first_sizes = (nib.affines.voxel_sizes(f.affine) for f in (file, first))
        if file is not mask and not np.allclose(sizes, first_sizes, rtol=0.01):
            raise UserError(
                f"{path}: its voxels have {_format_size(sizes)} mm, those of {first_path.name} "
                f"{_format_size(first_sizes)} mm; the files of a case must share one grid"
            )
        what = "label map" if file is mask else "contrast"
        remarks.append(f"affine of a {what} differs, voxels taken as on the grid of {schema.contrasts[0]}")

    labels = np.zeros(shape, np.uint8, order="F") if mask is None else _class_indices(mask.voxels, case.mask, schema)
    affine = first.affine @ nib.orientations.inv_ornt_aff(_turn_to_lps(first.affine), shape)
    return CaseVolumes(
        contrasts=tuple(_pictures(file.voxels, first.affine) for file in contrasts),
        labels=_pictures(labels, first.affine),
        spacing=tuple(float(mm) for mm in nib.affines.voxel_sizes(affine)[::-1]),
        shape=shape,
        affine=first.affine,
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _turned_like(first: Nifti, file: Nifti) -> Nifti:
    """A file of the same grid in other axes, as programs may save it, in the axes of the first; any other as it is."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(file.affine), nib.io_orientation(first.affine))
    affine = file.affine @ nib.orientations.inv_ornt_aff(turn, file.voxels.shape)
    voxels = nib.orientations.apply_orientation(file.voxels, turn)
    if voxels.shape != first.voxels.shape or not np.allclose(affine, first.affine, atol=0.05):
        return file
    return Nifti(voxels, first.affine, file.oriented)


def _read_contrasts(case: Case) -> list[Nifti]:
    """The contrasts in the order of the schema, from files of their own or out of one 4-D file."""
    if case.contrasts[0].channel is None:
        return [read_nifti(file.path) for file in case.contrasts]
    whole = read_nifti(case.contrasts[0].path, channels=len(case.contrasts))
    return [Nifti(whole.voxels[..., file.channel], whole.affine, whole.oriented) for file in case.contrasts]


def _turn_to_lps(affine: np.ndarray) -> np.ndarray:
    return nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt("LPS"))


def _pictures(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A volume in any axes -> [S, P, L]; axes are turned round and exchanged, never interpolated.

    Rows of the result lie together in memory; for BraTS's files it is a view.
    """
    turned = nib.orientations.apply_orientation(voxels, _turn_to_lps(affine)).T
    return np.ascontiguousarray(turned.astype(turned.dtype.newbyteorder("="), copy=False))


def _class_indices(voxels: np.ndarray, path: Path, schema: Schema) -> np.ndarray:
    """Label values -> class indices, uint8 of the same shape; looks at lesions only, a thousandth of the voxels."""
    indices = np.zeros(voxels.shape, np.uint8, order="F")
    places = voxels.astype(bool).nonzero()
    values = voxels[places]
    if values.dtype.kind == "f" and (fractions := values[values != np.rint(values)]).size:
        raise UserError(f"{path}: a label map holds whole numbers, but this one has {fractions[0]!s}")
    try:
        indices[places] = schema.indices_from_values(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return indices


def _format_size(spacing: Sequence[float]) -> str:
    return "×".join(f"{mm:.3g}" for mm in spacing)

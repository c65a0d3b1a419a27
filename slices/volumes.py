"""Volumes of patients on disk: which cases a folder holds, one case read in a common orientation, its head.

In memory every volume is a stack of pictures, [S, P, L]: slices from feet to head, rows from front to back, columns
from the patient's right to left. So a picture stands as radiologists see it: nose up, patient's left on the right.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from scipy import ndimage

from dnnlib.errors import UserError
from slices.schema import Schema

GRADES = ("HGG", "LGG")
MASK = "seg"  # the label map's suffix, where a contrast has its name
SUFFIXES = (".nii.gz", ".nii")

WINDOW = (0.5, 99.5)  # percentiles of the head's voxels that become the darkest and the brightest grey level
# Foreground differs from the background by more than this share of the intensities' robust range.
TOLERANCE = 0.01
# The background is constant if this share of the values near it, within five tolerances, is within one.
CONSTANT = 0.9


# --- on disk --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One examination: a folder `<name>` of files `<name>_<contrast>.nii.gz` and `<name>_seg.nii.gz`.

    grade: the name of the folder above, if that is one of GRADES.
    """

    name: str
    patient: str
    grade: str | None
    folder: Path


def find_cases(source: Path, schema: Schema) -> list[Case]:
    """The cases of a release in the layout of BraTS 2018, ordered by patient.

    A case is a folder with NIfTI files that bear its name, in `source` or in its HGG and LGG folders; all else is
    ignored. Raises UserError if there is none, or if two have one name.
    """
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source}: {'a file; expected a folder of cases' if source.exists() else 'no such folder'}")
    parents = [source, *(source / grade for grade in GRADES if (source / grade).is_dir())]
    folders = [folder for parent in parents for folder in sorted(parent.iterdir()) if _is_case(folder)]
    if not folders:
        case = f"<case>/<case>_{{{','.join(_kinds(schema))}}}.nii.gz"
        raise UserError(f"{source}: no cases found; expected in it {{HGG,LGG}}/{case} or {case}")
    grades = [folder.absolute().parent.name for folder in folders]
    cases = [
        Case(folder.name, folder.name, grade if grade in GRADES else None, folder)
        for folder, grade in zip(folders, grades, strict=True)
    ]
    first: dict[str, Path] = {}
    for case in cases:
        if case.name in first:
            raise UserError(f"{case.folder}: {first[case.name]} has the same name; every case needs a name of its own")
        first[case.name] = case.folder
    return sorted(cases, key=lambda case: (case.patient, case.name))


def _is_case(folder: Path) -> bool:
    if folder.name in GRADES or not folder.is_dir():
        return False
    return any(file.name.endswith(SUFFIXES) for file in folder.glob(f"{glob.escape(folder.name)}_*"))


def _kinds(schema: Schema) -> list[str]:
    """What a case needs a file of."""
    return [*schema.contrasts, *([MASK] if schema.num_maps else [])]


def case_files(case: Case, schema: Schema) -> dict[str, Path]:
    """Contrast or MASK -> file, in the schema's order; a UserError names the first that is missing."""
    files = {}
    for kind in _kinds(schema):
        named = [case.folder / f"{case.name}_{kind}{suffix}" for suffix in SUFFIXES]
        files[kind] = next((file for file in named if file.is_file()), None)
        if files[kind] is None:
            raise UserError(f"{named[0]} is missing; a case holds {', '.join(_kinds(schema))}")
    return files


# What nibabel and gzip raise for damaged files; the last two come from headers with absurd sizes.
_DAMAGE = (ImageFileError, HeaderDataError, WrapStructError, EOFError, zlib.error, OSError, ValueError, OverflowError)


@dataclass(frozen=True)
class Nifti:
    """A file's voxels in its own axes, their place in mm, and whether the header states an orientation at all."""

    voxels: np.ndarray
    affine: np.ndarray
    oriented: bool


def read_nifti(path: Path) -> Nifti:
    """Read a NIfTI file, compressed or not, wholly into memory.

    Raises UserError naming the file if it is damaged, or holds anything but a 3-D volume of finite real numbers.
    """
    content = Path(path).read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":  # decompressed as a whole, so that the checksum at its end is compared
            content = gzip.decompress(content)
        with _quiet_nibabel():
            # A NIfTI-2 header begins with its own size, 540, in either byte order.
            kind = nib.Nifti2Image if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
            image = kind.from_bytes(content)
            voxels = np.asanyarray(image.dataobj)
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: damaged, incomplete or not NIfTI ({reason}); copy or download it again") from None
    if voxels.ndim != 3 or not voxels.size:
        raise UserError(f"{path}: expected a 3-D volume, found the shape {_format_shape(voxels.shape)}")
    if voxels.dtype.kind not in "buif":
        raise UserError(f"{path}: expected voxels of real numbers, found {voxels.dtype}")
    if voxels.dtype.kind == "f" and (wrong := np.count_nonzero(~(np.abs(voxels) <= np.finfo(np.float32).max))):
        raise UserError(f"{path}: {wrong} voxels are NaN or infinite; repair the file or leave the case out")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine)) < 1e-9:
        raise UserError(f"{path}: the header's affine is not invertible, so the orientation is unknown")
    oriented = int(image.header["sform_code"]) > 0 or int(image.header["qform_code"]) > 0
    return Nifti(voxels, image.affine, oriented)


@contextlib.contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """nibabel logs harmless oddities of headers (qfac of 0) for every file; what matters comes as an exception."""
    logger = nib.imageglobals.logger
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


# --- in memory ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CaseVolumes:
    """The volumes of a case as stacks of pictures, and the grid that the files had.

    contrasts: float32 [C, S, P, L], in the files' intensities; labels: class indices, uint8 [S, P, L], all 0 for a
    schema without classes; spacing: mm between voxels along S, P, L; shape, affine: the files'; remarks: oddities that
    the user should know of.
    """

    contrasts: np.ndarray
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
    paths = case_files(case, schema)
    files = {kind: read_nifti(path) for kind, path in paths.items()}
    first, first_path = files[schema.contrasts[0]], paths[schema.contrasts[0]]
    remarks = [] if first.oriented else ["no orientation in the header, axes assumed to run to L, A, S"]
    for kind, file in files.items():
        if file.voxels.shape != first.voxels.shape:
            raise UserError(
                f"{paths[kind]}: {_format_shape(file.voxels.shape)} voxels, but {first_path.name} has "
                f"{_format_shape(first.voxels.shape)}; the files of a case must share one grid"
            )
        if np.allclose(file.affine, first.affine, atol=1e-3):
            continue
        axes, first_axes = ("".join(nib.aff2axcodes(f.affine)) for f in (file, first))
        if kind != MASK and axes != first_axes:
            raise UserError(
                f"{paths[kind]}: its axes run to {axes}, those of {first_path.name} to {first_axes}; "
                "the files of a case must share one grid"
            )
        what = "label map" if kind == MASK else "contrast"
        remarks.append(f"affine of a {what} differs, voxels taken as on the grid of {schema.contrasts[0]}")

    labels = np.zeros(first.voxels.shape, np.uint8)
    if MASK in files:
        labels = _class_indices(files[MASK].voxels, paths[MASK], schema)
    affine = first.affine @ nib.orientations.inv_ornt_aff(_turn_to_lps(first.affine), first.voxels.shape)
    labels = np.ascontiguousarray(_pictures(labels, first.affine))
    contrasts = np.empty((schema.num_contrasts, *labels.shape), np.float32)
    for contrast, kind in zip(contrasts, schema.contrasts, strict=True):
        contrast[...] = _pictures(files[kind].voxels, first.affine)
    return CaseVolumes(
        contrasts=contrasts,
        labels=labels,
        spacing=tuple(float(mm) for mm in nib.affines.voxel_sizes(affine)[::-1]),
        shape=first.voxels.shape,
        affine=first.affine,
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _turn_to_lps(affine: np.ndarray) -> np.ndarray:
    return nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt("LPS"))


def _pictures(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A volume in any axes -> [S, P, L]; axes are turned round and exchanged, never interpolated."""
    return nib.orientations.apply_orientation(voxels, _turn_to_lps(affine)).T


def _class_indices(voxels: np.ndarray, path: Path, schema: Schema) -> np.ndarray:
    if voxels.dtype.kind == "f":
        fractions = voxels[voxels != np.rint(voxels)]
        if fractions.size:
            raise UserError(f"{path}: a label map holds whole numbers, but this one has {fractions[0]!s}")
    try:
        return schema.indices_from_values(voxels)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _format_shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


# --- head and intensities -------------------------------------------------------------------------------------------


def find_head(contrasts: np.ndarray) -> np.ndarray:
    """Which voxels belong to the head: intensities [C, S, P, L] -> bool [S, P, L].

    What is foreground in any contrast, without specks and thin bridges, as one connected part with its holes filled.
    Raises UserError if every contrast is constant.
    """
    seen = np.zeros(contrasts.shape[1:], bool)
    for volume in contrasts:
        seen |= foreground(volume)
    if not seen.any():
        raise UserError("no head found: in every contrast all voxels have one value")
    (box,) = ndimage.find_objects(seen.view(np.uint8))
    head = np.zeros_like(seen)
    head[box] = _largest_part(seen[box])
    return head


def foreground(volume: np.ndarray) -> np.ndarray:
    """Voxels unlike the background: intensities [S, P, L] -> bool of the same shape.

    The background's value is the most frequent one on the volume's faces, whatever its sign. Where the faces show noise
    instead of one value, Otsu's threshold divides dark from bright.
    """
    sample = volume[::2, ::2, ::2]  # enough for percentiles, which are the slow part
    low, high = np.percentile(sample, WINDOW)
    tolerance = TOLERANCE * (high - low)

    faces = np.concatenate([np.take(volume, i, axis).ravel() for axis in range(3) for i in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    background = values[counts.argmax()]
    away = np.abs(faces - background)
    if (away <= tolerance).sum() >= CONSTANT * (away <= 5 * tolerance).sum():
        return np.abs(volume - background) > tolerance
    return volume > otsu_threshold(np.clip(sample, low, high))


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """The threshold that maximises the variance between the two groups it makes (Otsu 1979)."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]  # [bins − 1]: how many lie below each inner edge
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    mean_below = sums[:-1] / np.maximum(below, 1)
    mean_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = below.astype(float) * above * (mean_below - mean_above) ** 2
    # Any threshold in a gap between the groups is as good as another: take the middle of the gap.
    return float(edges[1:-1][np.isclose(between, between.max(), rtol=1e-9)].mean())


def _largest_part(seen: np.ndarray) -> np.ndarray:
    cross, cube = (ndimage.generate_binary_structure(3, connectivity) for connectivity in (1, 3))
    # A head that the field of view cuts off goes on beyond it: hence the border value.
    core = ndimage.binary_dilation(ndimage.binary_erosion(seen, cross, border_value=1), cross)
    parts, count = ndimage.label(core if core.any() else seen, cross)
    largest = parts == np.bincount(parts.ravel(), minlength=count + 1)[1:].argmax() + 1
    head = ndimage.binary_dilation(largest, cube) & seen  # gives back the corners that opening took
    outside, _ = ndimage.label(np.pad(~head, 1, constant_values=True), cross)
    return (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]


def intensity_window(intensities: np.ndarray) -> tuple[float, float]:
    """(low, high) between which a contrast's intensities in the head are spread over the grey levels."""
    low, high = np.percentile(intensities.astype(np.float64), WINDOW)
    return float(low), float(high)

"""Volumes of patients: a NIfTI file, one case read in a common orientation, its head and its intensities.

In memory every volume is a stack of pictures, [S, P, L]: slices from feet to head, rows from front to back, columns
from the patient's right to left. So a picture stands as radiologists see it: nose up, patient's left on the right.
"""

from __future__ import annotations

import contextlib
import io
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from scipy import ndimage

from dnnlib.errors import UserError
from slices.releases import Case
from slices.schema import Schema

WINDOW = (0.5, 99.5)  # percentiles of the head's voxels that become the darkest and the brightest grey level
# Foreground differs from the background by more than this share of the intensities' robust range.
TOLERANCE = 0.01
# The background is constant if this share of the values near it, within five tolerances, is within one.
CONSTANT = 0.9
MOST_VOXELS = 1 << 28  # of one file; thirty times those of a volume of BraTS, and 1 GB as float32
LONGEST_SIDE = 1 << 13  # voxels along an axis
_HEADER = 544  # bytes; NIfTI-2 has the longer header, and four more say what follows
_LATEST_START = 1 << 24  # byte at which voxels may start; extensions stand before them
_AFTER = 1 << 16  # bytes that may stand after the voxels


# --- on disk --------------------------------------------------------------------------------------------------------


# What nibabel and gzip raise for damaged files; the last two come from headers with absurd contents.
_DAMAGE = (
    ImageFileError, HeaderDataError, WrapStructError, EOFError, zlib.error, isal_zlib.error, OSError, ValueError,
    OverflowError, KeyError,
)  # fmt: skip


@dataclass(frozen=True)
class Nifti:
    """A file's voxels in its own axes, their place in mm, and whether the header states an orientation at all."""

    voxels: np.ndarray
    affine: np.ndarray
    oriented: bool


def read_nifti(path: Path, channels: int | None = None) -> Nifti:
    """Read a NIfTI file, compressed or not, wholly into memory.

    channels: None for a 3-D file, whose shape may go on with ones; for a 4-D file, how many volumes it should hold.
    What is no plain integer becomes float32. Raises UserError naming the file if it is damaged, too large, or holds
    anything but finite real numbers of that shape. A file takes no more memory than its header promises.
    """
    path = Path(path)
    try:
        with _quiet_nibabel(), _opened(path) as file:
            start = file.read(_HEADER)
            # A NIfTI-2 header begins with its own size, 540, in either byte order.
            kind = nib.Nifti2Image if start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
            header = kind.header_class(start[: kind.header_class.sizeof_hdr])  # without what extends it
            shape = header.get_data_shape()
            size = math.prod(shape) * header.get_data_dtype().itemsize
            shape = _checked_shape(path, shape, channels)
            place = header.get_data_offset()
            if not 352 <= place <= _LATEST_START:
                raise ValueError(f"its voxels are said to start at byte {place}")
            most = place + size + _AFTER
            content = start + file.read(most - len(start))
            if len(content) == most and file.read(1):
                raise ValueError(f"{size} bytes of voxels by its header, but more follow")
            image = kind.from_bytes(content)
            voxels = _voxels(image).reshape(shape, order="F")
    except UserError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file system's, not the file's
            raise UserError(f"{path}: {error.strerror}") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: damaged, incomplete or not NIfTI ({reason}); copy or download it again") from None
    except MemoryError:
        raise UserError(f"{path}: {_format_shape(shape)} voxels don't fit into memory") from None
    if voxels.dtype.kind not in "buif":
        raise UserError(f"{path}: expected voxels of real numbers, found {voxels.dtype}")
    if voxels.dtype.kind == "f" and not _all_finite(voxels):
        wrong = np.count_nonzero(~(np.abs(voxels) <= np.finfo(np.float32).max))
        raise UserError(f"{path}: {wrong} voxels are NaN or infinite; repair the file or leave the case out")
    if not has_axes(image.affine):
        raise UserError(f"{path}: the header's affine is not invertible, so the orientation is unknown")
    oriented = int(image.header["sform_code"]) > 0 or int(image.header["qform_code"]) > 0
    return Nifti(voxels, image.affine, oriented)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """A file's content, unpacked if it is gzip; reading to the end compares the checksum."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if packed:
            with igzip.IGzipFile(fileobj=file) as unpacked:
                yield unpacked
        else:
            yield file


def _checked_shape(path: Path, shape: Sequence[int], channels: int | None) -> tuple[int, ...]:
    """The shape without ones at its end, 3-D or 4-D as asked for; one contrast may be either."""
    found = _format_shape(shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if channels == 1 and len(shape) == 3:
        shape = (*shape, 1)
    fits = len(shape) == 3 if channels is None else len(shape) == 4 and shape[3] == channels
    if not fits or min(shape) < 1:
        volumes = f"{channels} volumes" if channels != 1 else "one volume"
        expected = "a 3-D volume" if channels is None else f"{volumes}, one for each contrast"
        raise UserError(f"{path}: expected {expected}, found the shape {found}")
    if math.prod(shape) > MOST_VOXELS or max(shape) > LONGEST_SIDE:
        raise UserError(
            f"{path}: {found} voxels; at most {MOST_VOXELS:,} are read from a file, and {LONGEST_SIDE:,} along an axis"
        )
    return tuple(shape)


def _voxels(image: nib.Nifti1Image) -> np.ndarray:
    """The voxels of an image, integers as they are; what needs a fraction as float32."""
    proxy = image.dataobj
    fractions = proxy.slope != 1 or proxy.inter != 0 or proxy.dtype.kind == "f"
    with np.errstate(over="ignore"):  # too large becomes infinite, which is refused
        return np.asanyarray(proxy, np.float32 if fractions else None)


def has_axes(affine: np.ndarray) -> bool:
    """Whether an affine, 4×4, is invertible, and tells along which axis of the world each axis of voxels runs."""
    return bool(
        np.isfinite(affine).all()
        and abs(np.linalg.det(affine)) >= 1e-9
        and not np.isnan(nib.io_orientation(affine)).any()
    )


def _all_finite(voxels: np.ndarray) -> bool:
    """Whether all are finite as float32; the extremes tell, and take no memory."""
    most = np.finfo(np.float32).max
    return bool(-most <= voxels.min() and voxels.max() <= most)


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
        remarks.append(f"the release's volumes have {_format_shape(case.grid)} voxels, these don't: is it another one?")
    named = list(zip((file.path for file in case.contrasts), contrasts, strict=True))
    for path, file in [*named, *([(case.mask, mask)] if mask else [])]:
        if file.voxels.shape != shape:
            raise UserError(
                f"{path}: {_format_shape(file.voxels.shape)} voxels, but {first_path.name} has "
                f"{_format_shape(shape)}; the files of a case must share one grid"
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


def _format_shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _format_size(spacing: Sequence[float]) -> str:
    return "×".join(f"{mm:.3g}" for mm in spacing)


# --- head and intensities -------------------------------------------------------------------------------------------


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


def intensity_window(intensities: np.ndarray) -> tuple[float, float]:
    """(low, high) between which a contrast's intensities in the head are spread over the grey levels."""
    return percentiles(intensities)


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The WINDOW percentiles, interpolated as NumPy does; integers are counted, which is faster than sorting."""
    values = values.ravel()
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        low, high = np.percentile(values.astype(np.float64, copy=False), WINDOW)
        return float(low), float(high)
    least = int(values.min())
    below = np.cumsum(np.bincount(values.astype(np.intp) - least))  # how many are at most least + index
    found = []
    for share in WINDOW:
        rank = (len(values) - 1) * (share / 100)
        whole = int(rank)
        low, high = (
            least + int(np.searchsorted(below, n, side="right")) for n in (whole, min(whole + 1, len(values) - 1))
        )
        found.append(low + (high - low) * (rank - whole))
    return found[0], found[1]

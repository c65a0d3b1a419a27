"""NIfTI files: a file's voxels, checked, and their place in mm."""

from __future__ import annotations

import contextlib
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from dnnlib.errors import UserError

MOST_VOXELS = 1 << 28  # of one file; thirty times those of a volume of BraTS, and 1 GB as float32
LONGEST_SIDE = 1 << 13  # voxels along an axis
_HEADER = 544  # bytes; NIfTI-2 has the longer header, and four more say what follows
_LATEST_START = 1 << 24  # byte at which voxels may start; extensions stand before them
_AFTER = 1 << 16  # bytes that may stand after the voxels

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
        raise UserError(f"{path}: {format_shape(shape)} voxels don't fit into memory") from None
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
    found = format_shape(shape)
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


def format_shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))

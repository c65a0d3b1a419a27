"""NIfTI files ↔ voxels: reading with all checks, and writing."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.spatialimages import HeaderDataError

from dnnlib.errors import UserError
from dnnlib.text import count
from slices.affine import Place, place_of
from slices.gunzip import Gunzip, GzipDamage
from slices.nifti_diagnosis import SHOWN, describe_stranger

MOST_VOXELS = 1 << 28  # of one volume; 30 times a volume of BraTS, and 1 GB as float32
LONGEST_SIDE = 1 << 13  # voxels along an axis
_LATEST_START = 1 << 24  # byte at which voxels may start; extensions of the header stand before them
_BEHIND = 1 << 16  # bytes that may follow the voxels; after a larger volume, fewer bytes than it has itself
_AGAIN = "copy or download it again"
GENERATED = "generated"  # first word of the header's description in an exported fake
_QUIET = logging.Logger("harmless oddities of headers")  # nibabel logs each of them; nobody needs to read it
_QUIET.disabled = True


@dataclass(frozen=True)
class Nifti:
    """One volume of a file."""

    voxels: np.ndarray  # [X, Y, Z] in the file's own axes; floating-point numbers may be NaN, but not infinite
    place: Place  # where the voxels lie, in mm
    step: float  # difference between neighboring values if the file stores scaled integers, else 0
    remarks: tuple[str, ...]  # oddities of the file, in words

    @property
    def affine(self) -> np.ndarray:
        return self.place.affine


def read_nifti(path: Path) -> Nifti:
    """Read a NIfTI file of one volume, compressed or not, wholly into memory.

    Unscaled integers keep their type, all other numbers become float32. Reading takes no more memory than the header
    promises. Raises UserError naming the file if it is no NIfTI, is damaged or too large, or doesn't hold real numbers
    of the expected shape.
    """
    return _read(path, None)[0]


def read_channels(path: Path, channels: int) -> list[Nifti]:
    """Read a NIfTI file of several volumes, one per channel. Otherwise like `read_nifti`."""
    return _read(path, channels)


def _read(path: Path, channels: int | None) -> list[Nifti]:
    """Read volumes, and name the file in every error. channels: None for a file of one volume."""
    try:
        with _opened(path) as file:
            return _volumes(file, channels)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (EOFError, GzipDamage):
        raise UserError(f"{path}: damaged or incomplete; {_AGAIN}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except MemoryError:
        raise UserError(f"{path}: its voxels don't fit into memory") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file, unpacked if it is gzip. The checksum is compared when it is read to its end."""
    with open(path, "rb") as file:
        # By content, not by name: some files have the wrong ending.
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        yield io.BufferedReader(Gunzip(file), 1 << 17) if packed else file


def _volumes(file: io.BufferedReader, channels: int | None) -> list[Nifti]:
    """The volumes of an open file."""
    header = _header(file)
    shape = _checked_shape(header.get_data_shape(), channels)
    size = math.prod(shape) * header.get_data_dtype().itemsize  # bytes of one volume
    number = channels or 1
    # Four bytes follow the header: flags that tell whether extensions come next.
    here, start = header.sizeof_hdr + 4, header.get_data_offset()
    if not here <= start <= _LATEST_START:
        raise UserError(f"damaged: its voxels are said to start at byte {start:,}; {_AGAIN}")
    # How long the content of a gzip file is, only unpacking tells.
    if not isinstance(file.raw, Gunzip) and os.fstat(file.fileno()).st_size < start + number * size:
        raise EOFError  # before memory is allocated
    _exactly(file, start - here)
    place = place_of(header, shape)
    volumes = [_checked_numbers(_scaled(_exactly(file, size), header, shape)) for _ in range(number)]
    behind = _count_behind(file, max(_BEHIND, number * size - 1))
    remarks = (
        *place.remarks,
        *([f"{count(behind, 'byte')} behind its end passed over"] if behind else []),
        *(["generated, says the header"] if header["descrip"].item().startswith(GENERATED.encode()) else []),
    )
    return [Nifti(voxels, place, _step(header), remarks) for voxels in volumes]


def _header(file: io.BufferedReader) -> nib.Nifti1Header:
    """Read the header at the start of a file, without extensions, and repair harmless mistakes in it."""
    start = file.read(SHOWN)
    # Magic bytes of NIfTI-1 and NIfTI-2 stand at different places.
    if start[344:348] == b"n+1\0":
        kind = nib.Nifti1Header
    elif start[4:8] == b"n+2\0":
        kind = nib.Nifti2Header
        start += _exactly(file, kind.sizeof_hdr + 4 - SHOWN)
    else:
        raise UserError(describe_stranger(start))
    header = kind(start[: kind.sizeof_hdr], check=False)
    try:
        header.check_fix(_QUIET, error_level=100)  # no mistake is that grave: repair all, raise for none
        # Called to find out whether they raise an error.
        dtype = header.get_data_dtype()
        header.get_data_shape()
        header.get_slope_inter()
        header.get_data_offset()
    except (HeaderDataError, ValueError, KeyError, OverflowError):
        raise UserError(f"damaged: its header makes no sense; {_AGAIN}") from None
    if dtype.kind not in "buif":
        raise UserError(f"expected voxels of real numbers, found {dtype}")
    return header


def _exactly(file: io.BufferedReader, size: int) -> bytes:
    """The next `size` bytes. Raises EOFError if there are fewer."""
    content = file.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _count_behind(file: io.BufferedReader, most: int) -> int:
    """Read to the end and count the bytes behind the voxels. Zeros alone are padding and don't count.

    Raises UserError if there are more than `most` bytes.
    """
    behind, padding = 0, True
    while piece := file.read1(1 << 20):
        behind += len(piece)
        padding &= not piece.strip(b"\0")
        if behind > most:
            raise UserError("too many bytes follow the voxels that its header promises: is its shape right?")
    return (0 if padding else behind) + (file.raw.behind if isinstance(file.raw, Gunzip) else 0)


def _checked_shape(shape: Sequence[int], channels: int | None) -> tuple[int, int, int]:
    """The shape of each volume. channels: None for a file of one volume, else the number of volumes expected."""
    # The channels may stand in any dimension after the third; dimensions of length 1 don't matter.
    found, volume, more = format_shape(shape), shape[:3], [n for n in shape[3:] if n != 1]
    if len(volume) < 3 or min(volume) < 1 or more != [n for n in [channels or 1] if n != 1]:
        volumes = "one volume" if channels == 1 else f"{channels} volumes"
        expected = "a 3-D volume" if channels is None else f"{volumes}, one for each contrast"
        raise UserError(f"expected {expected}, found the shape {found}")
    if math.prod(volume) > MOST_VOXELS or max(volume) > LONGEST_SIDE:
        raise UserError(
            f"{found} voxels; a volume may have at most {MOST_VOXELS:,}, and {LONGEST_SIDE:,} along an axis"
        )
    return volume[0], volume[1], volume[2]


def _scaled(content: bytes, header: nib.Nifti1Header, shape: tuple[int, int, int]) -> np.ndarray:
    """The voxels of a volume: integers of the file's type, or float32 if the header scales them or they are floats."""
    slope, inter = header.get_slope_inter()
    # nibabel's proxy applies slope and offset; here it reads from memory instead of a file.
    proxy = nib.arrayproxy.ArrayProxy(io.BytesIO(content), (shape, header.get_data_dtype(), 0, slope or 1, inter or 0))
    fractions = proxy.slope != 1 or proxy.inter != 0 or proxy.dtype.kind == "f"
    with np.errstate(over="ignore"):  # too large a number becomes infinite, which `_checked_numbers` refuses
        return np.asanyarray(proxy, np.float32 if fractions else None)


def _step(header: nib.Nifti1Header) -> float:
    """See Nifti.step."""
    slope, inter = header.get_slope_inter()
    scales = header.get_data_dtype().kind in "iu" and (slope or 1, inter or 0) != (1, 0)
    return abs(float(slope)) if scales else 0.0


def _checked_numbers(voxels: np.ndarray) -> np.ndarray:
    """The same voxels. Raises UserError if any is infinite as float32, or all are NaN."""
    most = np.finfo(np.float32).max
    # The common case is decided by the extremes. If any voxel is NaN, so are they, and comparisons are false.
    if voxels.dtype.kind != "f" or (-most <= voxels.min() and voxels.max() <= most):
        return voxels
    if infinite := int(np.count_nonzero(np.abs(voxels) > most)):
        wrong = count(infinite, "voxel")
        raise UserError(f"infinite, or beyond float32, in {wrong}; repair the file or leave the case out")
    if np.isnan(voxels).all():
        raise UserError("all voxels are NaN; repair the file or leave the case out")
    return voxels


def format_shape(shape: Sequence[int]) -> str:
    """A shape in words, such as "240×240×155"."""
    return "×".join(map(str, shape))


def nifti_bytes(volume: np.ndarray, affine: np.ndarray, description: str) -> bytes:
    """Compress a volume and its affine, 4×4 in mm, as a NIfTI-1 file. Equal volumes give equal bytes."""
    image = nib.Nifti1Image(volume, affine, dtype=volume.dtype)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.replace("×", "x").encode("ascii", "replace")  # 80 bytes at most
    return igzip.compress(image.to_bytes(), mtime=0)  # gzip stores a time: a fixed one keeps bytes equal

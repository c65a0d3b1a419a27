"""Forged files: NIfTI with any header, zips whose directory lies, .npy files with any text, packed bombs."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import nibabel as nib
import numpy as np

NAN, INF = float("nan"), float("inf")

# Fields of a NIfTI-1 header: name -> where it lies, and what it holds in the letters of `struct`.
FIELDS = {
    "sizeof_hdr": (0, "i"),
    "dim": (40, "8h"),
    "datatype": (70, "h"),
    "bitpix": (72, "h"),
    "pixdim": (76, "8f"),
    "vox_offset": (108, "f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "qform_code": (252, "h"),
    "sform_code": (254, "h"),
    "quatern": (256, "6f"),
    "srow": (280, "12f"),
    "magic": (344, "4s"),
    "extension": (348, "4s"),
}


def nifti(voxels: np.ndarray, order: str = "<", **fields: Any) -> bytes:
    """A NIfTI-1 file. `fields` overwrite those of the header; a tuple gives all values of a field."""
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_sform(np.diag((-1.0, -1, 1, 1)), 1)
    header["pixdim"][1:4] = 1
    header["vox_offset"], header["magic"] = 352, b"n+1"
    content = bytearray(header.binaryblock + bytes(4) + voxels.astype(voxels.dtype.newbyteorder(order)).tobytes("F"))
    for name, value in fields.items():
        place, form = FIELDS[name]
        struct.pack_into(order + form, content, place, *(value if isinstance(value, tuple) else (value,)))
    return bytes(content)


def pack_gzip(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


# --- zips that lie --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A member of a zip. The directory may say something else than what stands before the content."""

    name: bytes
    raw: bytes  # in the file, packed
    size: int  # unpacked, by the directory
    crc: int
    method: int = 8
    flags: int = 0x800
    offset: int | None = None  # where the directory says that the member lies; None: where it does
    length: int | None = None  # of `raw`, by the directory; None: the true one
    local_name: bytes | None = None  # before the content; None: the directory's
    extra: bytes = b""


def deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=-15)
    return packer.compress(content) + packer.flush()


def entry(name: str | bytes, content: bytes, **changes: Any) -> Entry:
    """A good member, but for the changes."""
    name = name if isinstance(name, bytes) else name.encode()
    return replace(Entry(name, deflate(content), len(content), zlib.crc32(content)), **changes)


def build_zip(entries: Sequence[Entry], **end: int) -> bytes:
    """A zip of these members. end: count, size and offset of the directory, if its end is to say something else."""
    file, directory = io.BytesIO(), io.BytesIO()
    for e in entries:
        place = (file.tell() if e.offset is None else e.offset) & 0xFFFFFFFF
        length = len(e.raw) if e.length is None else e.length
        sizes = e.crc, length & 0xFFFFFFFF, e.size & 0xFFFFFFFF
        name = e.name if e.local_name is None else e.local_name
        file.write(struct.pack("<4s5H3I2H", b"PK\3\4", 20, e.flags, e.method, 0, 33, *sizes, len(name), 0))
        file.write(name + e.raw)
        lengths = len(e.name), len(e.extra)
        versions = 20, 20, e.flags, e.method, 0, 33
        directory.write(struct.pack("<4s6H3I5H2I", b"PK\1\2", *versions, *sizes, *lengths, 0, 0, 0, 0, place))
        directory.write(e.name + e.extra)
    values = {"count": len(entries) & 0xFFFF, "size": directory.tell(), "offset": file.tell()} | end
    count, size, offset = values["count"], values["size"], values["offset"]
    ending = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, offset, 0)
    return file.getvalue() + directory.getvalue() + ending


def repeated(unit: bytes, times: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """A deflate stream of `before`, `unit` many times, and `after`. It is small, however large it unpacks."""
    packer = zlib.compressobj(9, wbits=-15)
    start = packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(unit) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, wbits=-15)
    return start + block * times + packer.compress(after) + packer.flush()


# --- arrays and pickles ---------------------------------------------------------------------------------------------


def as_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npy_header(text: str, content: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy file with any text where NumPy expects a dictionary."""
    header = text.encode() + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header + content


class Trap:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


# --- changes in any file --------------------------------------------------------------------------------------------


def flipped(content: bytes, places: Sequence[int], random: Random, most: int = 4) -> bytes:
    """Change up to `most` bytes among those at the places."""
    changed = bytearray(content)
    for place in random.sample(list(places), min(random.randint(1, most), len(places))):
        changed[place] ^= random.randint(1, 255)
    return bytes(changed)


def paths_in(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths to all values in JSON: tuples of names and indices."""
    if path:
        yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from paths_in(value, (*path, key))


def find(tree: Any, path: tuple) -> Any:
    """The value at a path in JSON."""
    for key in path:
        tree = tree[key]
    return tree


def put(tree: Any, path: tuple, value: Any) -> Any:
    """Replace the value at a path in JSON. Returns the old one."""
    outer = find(tree, path[:-1])
    old, outer[path[-1]] = outer[path[-1]], value
    return old

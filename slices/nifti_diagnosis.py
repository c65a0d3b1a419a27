"""Diagnosis of a file that is no NIfTI: what it is instead, and how to get a NIfTI file from it."""

from __future__ import annotations

import os
from pathlib import Path

from dnnlib.config import shorten

SHOWN = 352  # bytes at the beginning of a file that tell its kind; a NIfTI-1 header with its flags
_PACKED = "an archive of {}: unpack it, and give the NIfTI files in it"
_CONVERT = "an image in {} format: convert it to NIfTI"
_ANNEX = "datalad get (or git annex get) fetches the file"

# (offset, bytes at that offset, words for the file). The first that fits decides.
_SIGNS = (
    (0, b"version https://git-lfs", "a pointer of Git LFS instead of the file: git lfs pull fetches it"),
    (0, b"\x1f\x8b", "packed twice with gzip: unpack it once (gunzip)"),
    (0, b"PK\3\4", _PACKED.format("zip")),
    (0, b"PK\5\6", _PACKED.format("zip")),
    (257, b"ustar", _PACKED.format("tar")),
    (0, b"7z\xbc\xaf\x27\x1c", _PACKED.format("7-Zip")),
    (0, b"Rar!", _PACKED.format("RAR")),
    (0, b"BZh", "packed with bzip2: unpack it (bunzip2)"),
    (0, b"\xfd7zXZ\0", "packed with xz: unpack it (unxz)"),
    (0, b"\x28\xb5\x2f\xfd", "packed with Zstandard: unpack it (unzstd)"),
    (0, b"\x04\x22\x4d\x18", "packed with LZ4: unpack it (unlz4)"),
    (0, b"\x1f\x9d", "packed with compress: unpack it (uncompress)"),
    (344, b"ni1\0", "half of a pair of files; its voxels are in an .img file: convert both to one .nii file"),
    (4, b"ni2\0", "half of a pair of files; its voxels are in an .img file: convert both to one .nii file"),
    (0, b"\x5c\x01\0\0", "an Analyze header, or a damaged one of NIfTI: convert it to NIfTI, or copy it again"),
    (0, b"\0\0\x01\x5c", "an Analyze header, or a damaged one of NIfTI: convert it to NIfTI, or copy it again"),
    (128, b"DICM", _CONVERT.format("DICOM")),
    (0, b"\0\0\0\x01\0\0", _CONVERT.format("FreeSurfer's MGH")),
    (0, b"NRRD", _CONVERT.format("NRRD")),
    (0, b"ObjectType", _CONVERT.format("MetaImage")),
    (0, b"NDims", _CONVERT.format("MetaImage")),
    (0, b"\x89HDF", _CONVERT.format("HDF5 (MINC 2, MATLAB)")),
    (0, b"CDF", _CONVERT.format("NetCDF (MINC)")),
    (0, b"\x93NUMPY", _CONVERT.format("NumPy")),
    (0, b"MATLAB", _CONVERT.format("MATLAB")),
    (0, b"\x89PNG", _CONVERT.format("PNG")),
    (0, b"\xff\xd8\xff", _CONVERT.format("JPEG")),
    (0, b"GIF8", _CONVERT.format("GIF")),
    (0, b"II*\0", _CONVERT.format("TIFF")),
    (0, b"MM\0*", _CONVERT.format("TIFF")),
    (0, b"%PDF", "a PDF document"),
)


def describe_stranger(start: bytes) -> str:
    """Describe a file by the first bytes of its unpacked content, at most SHOWN."""
    if not start:
        return "empty (0 bytes); download it again"
    if not start.strip(b"\0"):
        return "nothing but zeros, as after an interrupted download; download it again"
    for place, sign, words in _SIGNS:
        if start[place:].startswith(sign):
            return words
    return _describe_text(start) or f"no NIfTI file (it begins with the bytes {start[:8].hex(' ')}); download it again"


def _describe_text(start: bytes) -> str | None:
    """Describe a text file by its first bytes; None for anything but text."""
    try:
        text = start.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        if error.start < SHOWN - 3:
            return None
        # The last bytes may be the first half of a letter, which takes up to four bytes in UTF-8.
        text = start[: error.start].decode("utf-8-sig").strip()
    if not text or not all(letter.isprintable() or letter in "\t\r\n" for letter in text):
        return None
    if "annex/objects/" in text:
        return f"a pointer of git-annex instead of the file: {_ANNEX}"
    if "<html" in text.lower() or text.lower().startswith("<!doctype html"):
        return "a web page instead of the file, as after a failed download; download it again"
    kind = {"<": "XML", "{": "JSON", "[": "JSON"}.get(text[:1], "text")
    shown = " ".join(text[:80].split())
    return f"{kind} instead of the file, perhaps a server's error message ({shown}); download it again"


def describe_missing(path: Path) -> str:
    """Explain why a file can't be opened although its folder lists it: a broken link. Empty for anything else."""
    if not path.is_symlink():
        return ""
    target = os.readlink(path)
    hint = _ANNEX if "annex/objects" in target else "fetch what it points to, or mend it"
    return f"a link to {shorten(target)}, which is not there: {hint}"

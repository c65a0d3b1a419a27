"""Zip files, member by member. Many processes can pack and read at once; one appends.

Python's zipfile packs only while it writes, and its readers share one file position. Here `pack` is a function for
worker processes, and a member is read at its offset, without a shared position. ISA-L inflates three times as fast as
zlib. The directory of a zip is left to zipfile.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from isal import isal_zlib

from dnnlib.config import shorten
from dnnlib.errors import UserError

LEVEL = 1  # of ISA-L: results are as small as with zlib's level 1, ten times as fast
_RAW = -15  # zlib's wbits for deflate without a header, as zip stores it
_DATE = (1980, 1, 1, 0, 0, 0)  # fixed, so that equal content gives equal bytes
_LOCAL = struct.Struct("<4s22xHH")  # header before a member: signature, …, lengths of name and extra field
_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED, _UTF8 = 1, 0x800  # flags of a member
_MOST_DEFLATED = 1032  # no byte of deflate unpacks to more bytes
# The type stub of isal declares its error as an instance instead of a class.
_Damage: type[Exception] = isal_zlib.error  # type: ignore[assignment]
# What zipfile raises for files that can't be read or are no zips. The last two come from absurd lengths and offsets.
_NOT_ZIP: tuple[type[Exception], ...] = (
    OSError,
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    struct.error,
    OverflowError,
    MemoryError,
)


class Packed(NamedTuple):
    """A deflated member, ready to be written into a zip."""

    deflated: bytes
    size: int  # bytes of the content, unpacked
    crc: int  # CRC-32 of the content


def pack(content: bytes) -> Packed:
    """Deflate the content of a member."""
    return Packed(isal_zlib.compress(content, LEVEL, _RAW), len(content), isal_zlib.crc32(content))


def unpack(member: Packed) -> bytes:
    """The content of a member that `pack` made."""
    return isal_zlib.decompress(member.deflated, _RAW, member.size)


class ZipWriter:
    """Append packed members to a new zip file, which is complete after `close`. Every OSError names the file."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)

    def add(self, name: str, member: Packed) -> None:
        """Append a member. The bytes of the file depend on names and contents only."""
        with self._naming_the_file():
            self._append(name, member)

    def _append(self, name: str, member: Packed) -> None:
        info = zipfile.ZipInfo(name, _DATE)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = (stat.S_IFREG | 0o644) << 16  # Unix mode, in the upper 16 bits
        info.file_size, info.compress_size, info.CRC = member.size, len(member.deflated), member.crc
        # zipfile can't write bytes that are already packed, so this repeats what its writestr does.
        file = self._zip.fp
        assert file is not None, "closed"
        file.seek(self._zip.start_dir)
        info.header_offset = file.tell()
        file.write(info.FileHeader())
        file.write(member.deflated)
        self._zip.start_dir = file.tell()
        self._zip.filelist.append(info)
        self._zip.NameToInfo[name] = info
        self._set_modified(True)

    def _set_modified(self, modified: bool) -> None:
        """Set whether zipfile writes a directory when it closes the file."""
        setattr(self._zip, "_didModify", modified)  # noqa: B010 (types know no private names)

    def close(self) -> None:
        """Write the directory."""
        with self._naming_the_file():
            self._zip.close()

    @contextlib.contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        """Add the file's name to every OSError. A full disk, for example, names no file by itself."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def abandon(self) -> None:
        """Close without a directory. The file can't be used afterwards."""
        self._set_modified(False)
        try:
            self._zip.close()
        except OSError:  # a full disk; what can't be flushed is not needed
            pass


class ZipReader:
    """Read members of a zip file, from any number of threads and processes. It can be pickled for other processes.

    Raises UserError naming the file, the member and the reason for anything that doesn't fit. No member takes more
    memory than the caller allows, whatever the file claims.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        try:
            with zipfile.ZipFile(self.path) as file:
                members, end = file.infolist(), file.start_dir
        except _NOT_ZIP as error:
            if isinstance(error, OSError) and error.filename is not None:  # opening failed: the error says why
                raise
            raise UserError(f"{self.path}: not a complete zip archive ({error})") from None
        self._members = {m.filename: m for m in members}
        if len(self._members) < len(members):
            # The most common name, as the only entry of a list of (name, count).
            ((twice, _),) = Counter(m.filename for m in members).most_common(1)
            raise UserError(f"{self.path}: holds more than one member of the name {shorten(twice)}")
        self._check_places(end)
        self._open()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __len__(self) -> int:
        return len(self._members)

    # A file descriptor means nothing to another process, so a copy opens the file again.
    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if "_file" in self.__dict__:  # missing if __init__ raised an error
            os.close(self._file)

    def packed(self, name: str, most: int) -> Packed:
        """A member to be copied into another zip, still deflated. most: bytes that it may have, unpacked."""
        member = self._find(name, most)
        raw = self._raw(member)
        if member.compress_type == zipfile.ZIP_STORED:
            return pack(raw)
        return Packed(raw, member.file_size, member.CRC)

    def read(self, name: str, most: int) -> bytes:
        """The content of a member, checked against its CRC-32. most: bytes that it may have."""
        member = self._find(name, most)
        content = self._raw(member)
        if member.compress_type == zipfile.ZIP_DEFLATED:
            inflate = isal_zlib.decompressobj(_RAW)
            try:
                # One byte more than it should have tells a member that is too long, without inflating all of it.
                content = inflate.decompress(content, member.file_size + 1)
            except _Damage as error:
                raise self._damaged(name, error) from None
            if not inflate.eof:
                raise self._damaged(name, f"does not inflate to its {member.file_size} bytes")
        if len(content) != member.file_size:
            raise self._damaged(name, f"does not inflate to its {member.file_size} bytes")
        if isal_zlib.crc32(content) != member.CRC:
            raise self._damaged(name, "its CRC-32 differs")
        return content

    def _check_places(self, end: int) -> None:
        """Refuse members that overlap or reach beyond `end`. A small file could claim any number of large members."""
        place = 0
        for member in sorted(self._members.values(), key=lambda m: m.header_offset):
            if member.header_offset < place:
                raise self._damaged(member.filename, "it lies within another, or before the file")
            place = member.header_offset + _LOCAL.size + member.compress_size
            if place > end:
                raise self._damaged(member.filename, "by the zip's directory, it continues beyond the end of the file")

    def _find(self, name: str, most: int) -> zipfile.ZipInfo:
        """The entry of a member in the directory, checked: known, deflated or stored, and of a plausible size."""
        if name not in self._members:
            raise UserError(f"{self.path}: the member {name} is missing")
        member = self._members[name]
        if member.flag_bits & _ENCRYPTED:
            raise self._damaged(name, "encrypted")
        if member.compress_type not in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
            raise self._damaged(name, f"packed by method {member.compress_type}; expected deflate")
        if member.file_size > most:
            raise self._damaged(name, f"{member.file_size} bytes; expected at most {most}")
        if member.file_size > _MOST_DEFLATED * member.compress_size or member.compress_size > 2 * most + 1024:
            raise self._damaged(name, f"{member.compress_size} bytes can't hold {member.file_size}")
        return member

    def _raw(self, member: zipfile.ZipInfo) -> bytes:
        """The bytes of a member as stored in the file, after checking the header before them."""
        header = self._read_at(member.header_offset, _LOCAL.size)
        if len(header) < _LOCAL.size or header[:4] != _SIGNATURE:
            raise self._damaged(member.filename, "it is not where the directory says")
        _, name_length, extra_length = _LOCAL.unpack(header)
        place = member.header_offset + _LOCAL.size
        encoding = "utf-8" if member.flag_bits & _UTF8 else "cp437"
        if self._read_at(place, name_length) != member.orig_filename.encode(encoding):
            raise self._damaged(member.filename, "another name stands before its content")
        raw = self._read_at(place + name_length + extra_length, member.compress_size)
        if len(raw) < member.compress_size:
            raise self._damaged(member.filename, "the file ends before it does")
        return raw

    def _read_at(self, place: int, length: int) -> bytes:
        try:
            return os.pread(self._file, length, place)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def _damaged(self, name: str, reason: object) -> UserError:
        return UserError(f"{self.path}: the member {name if name.isprintable() else ascii(name)} is damaged ({reason})")

"""Unpack gzip as gzip itself does: one member after another, and anything else behind them is passed over."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, BinaryIO

from isal import isal_zlib

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MEMBER = b"\x1f\x8b\x08"  # how each member begins
_CHUNK = 1 << 15  # packed bytes; small, for the rest of a chunk is copied when a member ends in it
_PIECE = 1 << 20  # unpacked bytes; they stay in the processor's cache
_GZIP = 31  # what zlib calls a window of 32 KB with gzip's header and checksum
GzipDamage: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # isal's stub says it is an instance


class Gunzip(io.RawIOBase):
    """The unpacked content of a file of gzip members. The checksum of each is compared at its end.

    Reading raises EOFError where a member is cut off, GzipDamage where one is damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._packed = file, b""
        self._member: isal_zlib.Decompress | None = isal_zlib.decompressobj(_GZIP)  # None: between two members
        self.behind = 0  # bytes after the last member, without padding by zeros; known when all has been read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        target = memoryview(buffer)
        while member := self._member or self._next_member():
            self._packed = self._packed or self._file.read(_CHUNK)
            content = member.decompress(self._packed, min(len(target), _PIECE))
            if member.eof:
                self._packed, self._member = member.unused_data, None
            elif self._packed or content:
                self._packed = member.unconsumed_tail
            else:
                raise EOFError
            if content:
                target[: len(content)] = content
                return len(content)
        return 0

    def _next_member(self) -> isal_zlib.Decompress | None:
        """Begin the next member, if another one follows; zeros may stand before it."""
        while len(packed := self._packed.lstrip(b"\0")) < len(_MEMBER) and (more := self._file.read(_CHUNK)):
            self._packed = packed + more
        if packed.startswith(_MEMBER):
            self._packed, self._member = packed, isal_zlib.decompressobj(_GZIP)
            return self._member
        here = self._file.tell()
        self.behind += len(packed) + self._file.seek(0, os.SEEK_END) - here
        self._packed = b""
        return None

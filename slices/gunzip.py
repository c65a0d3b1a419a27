"""Unpack gzip files as gzip does: one member after another. Anything else behind the members is ignored."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, BinaryIO

from isal import isal_zlib

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MEMBER = b"\x1f\x8b\x08"  # how each member begins
_CHUNK = 1 << 15  # packed bytes; small, because the rest of a chunk is copied when a member ends in it
_PIECE = 1 << 20  # unpacked bytes at a time; they fit into the processor's cache
_GZIP = 31  # zlib's wbits for a window of 32 KB, with gzip's header and checksum
GzipDamage: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # isal's stub says it is an instance


class Gunzip(io.RawIOBase):
    """The unpacked content of a gzip file. The checksum of each member is compared at its end.

    Reading raises EOFError for a member that is cut off, and GzipDamage for one that is damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._packed = file, b""
        self._member: isal_zlib.Decompress | None = isal_zlib.decompressobj(_GZIP)  # None: between two members
        self.behind = 0  # bytes behind the last member, zeros in front not counted; valid at the end of the file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill a buffer with unpacked bytes, perhaps not wholly. Returns their number, 0 at the end."""
        target = memoryview(buffer)
        while member := self._member or self._next_member():
            self._packed = self._packed or self._file.read(_CHUNK)
            content = member.decompress(self._packed, min(len(target), _PIECE))
            if member.eof:  # what follows belongs to the next member
                self._packed, self._member = member.unused_data, None
            elif self._packed or content:  # keep what did not fit into the buffer
                self._packed = member.unconsumed_tail
            else:  # the file has ended, but the member has not
                raise EOFError
            if content:  # else go on: a read of 0 bytes would mean the end
                target[: len(content)] = content
                return len(content)
        return 0

    def _next_member(self) -> isal_zlib.Decompress | None:
        """Begin the next member after any zeros. Returns None, and counts the bytes behind, if there is none."""
        # Read on until there are enough bytes to recognize a member, or the file ends.
        while len(packed := self._packed.lstrip(b"\0")) < len(_MEMBER) and (more := self._file.read(_CHUNK)):
            self._packed = packed + more
        if packed.startswith(_MEMBER):
            self._packed, self._member = packed, isal_zlib.decompressobj(_GZIP)
            return self._member
        here = self._file.tell()
        self.behind += len(packed) + self._file.seek(0, os.SEEK_END) - here
        self._packed = b""
        return None

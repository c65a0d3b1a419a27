"""Unpacking gzip as gzip itself does: members one after another, and whatever else follows them is passed over."""

from __future__ import annotations

import io
import os
from typing import BinaryIO

from isal import isal_zlib

_MEMBER = b"\x1f\x8b\x08"  # how each begins
_CHUNK = 1 << 15  # packed bytes; of a small one little is copied when a member ends in it
_PIECE = 1 << 20  # unpacked bytes, that stay in the processor's cache
_GZIP = 31  # what zlib calls a window of 32 KB with gzip's header and checksum


class Gunzip(io.RawIOBase):
    """The unpacked content of a file of gzip members, each of whose checksums is compared at its end.

    behind: bytes after the last member that are none and no padding with zeros; known when all has been read. Raises
    EOFError where a member is cut off, isal_zlib.error where one is damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._packed, self._member = file, b"", isal_zlib.decompressobj(_GZIP)
        self.behind = 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:
        while self._member or self._next_begins():
            self._packed = self._packed or self._file.read(_CHUNK)
            content = self._member.decompress(self._packed, min(len(target), _PIECE))
            if self._member.eof:
                self._packed, self._member = self._member.unused_data, None
            elif self._packed or content:
                self._packed = self._member.unconsumed_tail
            else:
                raise EOFError
            if content:
                target[: len(content)] = content
                return len(content)
        return 0

    def _next_begins(self) -> bool:
        """Whether another member follows; zeros may stand before it."""
        while len(packed := self._packed.lstrip(b"\0")) < len(_MEMBER) and (more := self._file.read(_CHUNK)):
            self._packed = packed + more
        if packed.startswith(_MEMBER):
            self._packed, self._member = packed, isal_zlib.decompressobj(_GZIP)
            return True
        here = self._file.tell()
        self.behind += len(packed) + self._file.seek(0, os.SEEK_END) - here
        self._packed = b""
        return False

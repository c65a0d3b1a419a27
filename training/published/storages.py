"""Numbers of tensors, in the form in which torch.save wrote a storage before it wrote zip files.

Five pickles come one after the other: a magic number, the version of the form, facts about the machine, the storage
(as a persistent id), and the keys of the storages that follow. Then come a count, and the numbers themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from dnnlib.errors import UserError
from training.published.pickles import Budget, PickleReader, Record, Table

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_PART = " of the storage of a tensor"
_MOST_DIMENSIONS = 8

# Types of numbers, by the names of their storages.
_TYPES: Table = {
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "LongStorage"): torch.int64,
    ("torch", "IntStorage"): torch.int32,
    ("torch", "ShortStorage"): torch.int16,
    ("torch", "CharStorage"): torch.int8,
    ("torch", "ByteStorage"): torch.uint8,
    ("torch", "BoolStorage"): torch.bool,
}


class Storage(Record):
    """Numbers as they stand in the file."""

    def __init__(self, dtype: torch.dtype, count: int, content: memoryview) -> None:
        self.dtype, self.count, self.content = dtype, count, content

    def __repr__(self) -> str:
        return f"a storage of {self.count} numbers"


@dataclass(frozen=True)
class _Header:
    """What a persistent id says about a storage."""

    dtype: torch.dtype
    key: str
    count: int


def read_storage(content: memoryview, where: str, budget: Budget) -> Storage:
    """Read a storage. content: the bytes that torch.save wrote. where: name of the file, for messages.

    Raises UserError for anything else than one complete storage.
    """
    reader = PickleReader(content, where, _TYPES, budget, part=_PART)
    if reader.read() != _MAGIC or reader.read() != _VERSION:
        reader.refuse("numbers in another form than torch.save's old one")
    machine = reader.read()
    if type(machine) is not dict or machine.get("little_endian") is not True:
        reader.refuse("numbers of a machine that is not little-endian")
    reader.find = lambda identity: _header(reader, identity)
    header = reader.read()
    reader.find = None
    keys = reader.read()
    if type(header) is not _Header or type(keys) is not list or len(keys) != 1 or keys[0] != header.key:
        reader.refuse("expected one storage")
    count = int.from_bytes(reader.take(8), "little")
    numbers = reader.take(len(content) - reader.at)
    if count != header.count or len(numbers) != count * header.dtype.itemsize:
        raise UserError(
            f"{where}: damaged: a storage of {header.count} numbers of {header.dtype.itemsize} bytes each in "
            f"{len(numbers)} bytes"
        )
    return Storage(header.dtype, count, numbers)


def _header(reader: PickleReader, identity: Any) -> _Header:
    """Return what a persistent id says. It is ("storage", type, key, device, count, view), view being None."""
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        reader.refuse("a persistent id that is no storage")
    kind, key, count, *view = (*identity[1:3], *identity[4:])
    dtype = getattr(kind, "meaning", None)
    if not isinstance(dtype, torch.dtype) or type(key) is not str or type(count) is not int or view not in ([], [None]):
        reader.refuse("a storage of another form")
    return _Header(dtype, key, count)


class StoredTensor(Record):
    """A tensor as it stands in the file."""

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def __repr__(self) -> str:
        return f"a tensor {list(self.shape)}"

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers of the tensor."""
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def load(self) -> torch.Tensor:
        """Return the tensor, in memory of its own."""
        size, dtype = self.storage.dtype.itemsize, self.storage.dtype
        begin, end = self.offset * size, self.offset * size + self.nbytes
        # The copy of the bytes begins at an address that suits the type; in the file, they may begin anywhere.
        content = torch.frombuffer(self.storage.content[begin:end], dtype=torch.uint8).clone()
        return content.view(dtype).as_strided(self.shape, self.strides)


def stored_tensor(reader: PickleReader, arguments: tuple) -> StoredTensor:
    """Make a tensor of the arguments of torch._utils._rebuild_tensor_v2.

    Raises UserError if it reaches beyond its storage, or if its numbers do not lie side by side.
    """
    storage, offset, shape, strides = arguments[:4] if len(arguments) in (6, 7) else (None,) * 4
    if not isinstance(storage, Storage) or not _are_counts((offset,)) or not _are_counts(shape, strides):
        reader.refuse("a tensor of another form")
    # The last number minus the first one, plus 1.
    span = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 in shape or span != math.prod(shape) or offset + span > storage.count:
        raise UserError(
            f"{reader.where}: a tensor {list(shape)} at {offset} with strides {list(strides)} reaches beyond its "
            f"storage of {storage.count} numbers, or has gaps"
        )
    return StoredTensor(storage, offset, shape, strides)


def _are_counts(*sequences: Any) -> bool:
    """Return whether these are tuples of the same few numbers, none of them negative or huge."""
    return len({len(s) if type(s) is tuple else -1 for s in sequences}) == 1 and all(
        type(s) is tuple and len(s) <= _MOST_DIMENSIONS and all(type(n) is int and 0 <= n < 1 << 40 for n in s)
        for s in sequences
    )

"""The names that a published checkpoint may ask for, and what each of them becomes here."""

from __future__ import annotations

import struct
from typing import Any

from dnnlib.config import shorten
from training.published.pickles import Budget, PickleReader, Record, Table, check_nesting
from training.published.storages import StoredTensor, read_storage, stored_tensor

# numpy's codes of types, without the byte order -> those of `struct`.
_NUMPY_TYPES = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u1": "B", "b1": "?"}


class Module(Record):
    """A network or a part of one: what the published code notes of an object when it pickles it."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.class_name, self.state = class_name, state

    @property
    def parts(self) -> tuple[Any, ...]:  # type: ignore[override]
        return (self.state,)

    def __repr__(self) -> str:
        return f"a {self.class_name}"


class _Array(Record):
    """An array of numpy's. StyleGAN3 has some; they are not read, but let it be recognized."""

    def set_state(self, reader: PickleReader, state: Any) -> None:
        self.parts = (state,)


class _NumpyType(Record):
    """A type of numpy's."""

    def __init__(self, code: str) -> None:
        self.code = code

    def set_state(self, reader: PickleReader, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|"):
            reader.refuse("a number that is not little-endian")


def _module(reader: PickleReader, arguments: tuple) -> Module:
    """Read the arguments of torch_utils.persistence._reconstruct_persistent_obj, but for the source code in them."""
    meta = arguments[0] if len(arguments) == 1 and type(arguments[0]) is dict else {}
    name, state = meta.get("class_name"), meta.get("state")
    if meta.get("type") != "class" or type(name) is not str or type(state) is not dict:
        reader.refuse("an object without class and state")
    return Module(name, state)


def _storage(reader: PickleReader, arguments: tuple) -> Any:
    if len(arguments) != 1 or type(arguments[0]) is not memoryview:
        reader.refuse("a storage that is not bytes")
    return read_storage(arguments[0], reader.where, reader.budget)


def _parameter(reader: PickleReader, arguments: tuple) -> StoredTensor:
    if len(arguments) != 3 or not isinstance(arguments[0], StoredTensor):
        reader.refuse("a parameter that is no tensor")
    return arguments[0]


def _dict(reader: PickleReader, arguments: tuple) -> dict:
    if arguments:
        reader.refuse("a dictionary of another form")
    return {}


def _set(reader: PickleReader, arguments: tuple) -> list:
    if len(arguments) != 1 or type(arguments[0]) is not list:
        reader.refuse("a set of another form")
    return arguments[0]


def _numpy_type(reader: PickleReader, arguments: tuple) -> _NumpyType:
    if not arguments or type(arguments[0]) is not str or arguments[0] not in _NUMPY_TYPES:
        reader.refuse(f"the type {shorten(arguments[:1])} of a number")
    return _NumpyType(arguments[0])


def _array(reader: PickleReader, arguments: tuple) -> _Array:
    return _Array()


def _numpy_scalar(reader: PickleReader, arguments: tuple) -> float:
    if len(arguments) != 2 or not isinstance(arguments[0], _NumpyType) or type(arguments[1]) is not memoryview:
        reader.refuse("a number of another form")
    layout = struct.Struct("<" + _NUMPY_TYPES[arguments[0].code])
    if len(arguments[1]) != layout.size:
        reader.refuse("a number of another size")
    return layout.unpack(arguments[1])[0]


_NAMES: Table = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _module,
    ("torch._utils", "_rebuild_tensor_v2"): stored_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): _dict,
    ("dnnlib.util", "EasyDict"): _dict,
    ("builtins", "set"): _set,  # protocol 3
    ("__builtin__", "set"): _set,  # protocol 2
    ("numpy", "dtype"): _numpy_type,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,  # since numpy 2
    ("numpy", "ndarray"): None,
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
}


def read_values(content: memoryview, where: str) -> Any:
    """Return what a published checkpoint holds: plain values, modules and stored tensors.

    where: name of the file, for messages.
    Raises UserError if the file is damaged, or asks for anything that networks do not need.
    """
    reader = PickleReader(content, where, _NAMES, Budget())
    values = reader.read()
    if reader.at < len(content):
        reader.refuse(f"{len(content) - reader.at} more bytes behind its end")
    check_nesting(values, where)
    return values

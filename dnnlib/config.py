"""Strict conversion between dataclasses and JSON: values that don't fit are refused, never dropped or guessed.

The JSON comes from files that other people made. Every form of it ends in a record or in one UserError.
"""

import dataclasses
import functools
import json
import math
import reprlib
import types
import typing
from collections import Counter
from typing import Any, TypeVar

from dnnlib.errors import UserError
from dnnlib.system import plain_text

T = TypeVar("T")
DEEPEST = 50  # levels of lists and objects that JSON may have
_PARSED = 20 * DEEPEST  # levels that are parsed; more than allowed, so that a message can name the field
OPTIONAL = "left out of JSON while it has its default"  # key in a field's metadata
_SHORT = reprlib.Repr()  # for `shorten`
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 2, 4, 2
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 40


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError for a syntax error, NaN, infinity, a name twice in an object, and deep nesting."""
    try:
        found = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
        _follow(found)
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} levels deep") from None
    return found


def _follow(level: Any) -> None:
    """Raise RecursionError for deep nesting. Python's parser did so until version 3.11; later ones parse any depth."""
    level = [level]
    for _ in range(_PARSED):
        # From all lists and objects of one level to all values of the next, without recursion.
        nested = (one for one in level if isinstance(one, (dict, list)))
        level = [value for one in nested for value in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return
    raise RecursionError


def _refuse_constant(name: str) -> Any:
    """Raise ValueError for NaN and infinity, which Python writes and reads although JSON has no such numbers."""
    raise ValueError(f"{name} is not a JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of an object. Raises ValueError for a name that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"an object has the name {shorten(twice)} twice")
    return found


def optional(default: Any) -> Any:
    """Declare a dataclass field that JSON leaves out while it has its default. Files then look as before the field."""
    return dataclasses.field(default=default, metadata={OPTIONAL: True})


def to_json(config: Any) -> Any:
    """Convert a dataclass to JSON values, including nested dataclasses, tuples and dictionaries.

    Invalid bytes in a text are spelled out, as in \\xff. The name of a folder that is not UTF-8 has such bytes.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {
            f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config) if not _left_out(config, f)
        }
    if isinstance(config, dict):
        return {to_json(key): to_json(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_json(value) for value in config]
    return plain_text(config) if isinstance(config, str) else config


def _left_out(config: Any, f: dataclasses.Field) -> bool:
    """Return whether JSON leaves out this field of this record."""
    return OPTIONAL in f.metadata and getattr(config, f.name) == f.default


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """Build the dataclass `cls` from JSON values.

    where: prefix of field names in messages; by default the name of the class.
    Raises UserError with the field's name if a field is missing, unknown, or has another type.
    """
    where = where or cls.__name__
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected an object, found {shorten(data)}")
    plain: type = cls  # mypy does not know that a type[T] can be hashed
    hints, required = _fields(plain)
    if unknown := sorted(set(data) - set(hints)):
        raise UserError(f"{where}: unknown field {shorten(unknown[0])}; known ones are {', '.join(hints)}")
    if missing := [name for name in required if name not in data]:
        raise UserError(f"{where}: the field {missing[0]!r} is missing")
    values = {name: _convert(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except UserError as error:  # from a check in the class's __post_init__
        raise UserError(f"{where}: {error}") from None


@functools.cache
def _fields(cls: type) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a dataclass as name -> type, and the names of those without a default."""
    hints, fields = typing.get_type_hints(cls), dataclasses.fields(cls)
    required = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    return {f.name: hints[f.name] for f in fields}, required


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Convert one JSON value to the type of a field. where: the field's name for messages."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (hint is dict and isinstance(value, dict)):
        _check_plain(value, where)
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (inner,) = (a for a in args if a is not type(None))  # the only union in configurations is X | None
        return _convert(inner, value, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: expected a list, found {shorten(value)}")
        fixed = origin is tuple and not (len(args) == 2 and args[1] is Ellipsis)  # tuple[X, Y], not tuple[X, ...]
        if fixed and len(args) != len(value):
            raise UserError(f"{where}: expected {len(args)} values, found {len(value)}")
        inner = args if fixed else (args[0],) * len(value)
        return origin(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(inner, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected an object, found {shorten(value)}")
        return {_checked(key, where): _convert(args[1], v, f"{where}[{shorten(key)}]") for key, v in value.items()}
    if hint is float and type(value) is int:
        value = float(_checked(value, where))
    if type(value) is not hint:  # not isinstance, as True is an instance of int
        raise UserError(f"{where}: expected {hint.__name__}, found {shorten(value)}")
    return _checked(value, where)


def _checked(value: Any, where: str) -> Any:
    """Return a number or string if other programs can read it. Raises UserError for numbers beyond 64 bits and NaN.

    Raises UserError also for half a surrogate pair, which JSON can spell but UTF-8 can't encode.
    """
    if type(value) is int and not -(1 << 63) <= value < 1 << 63:
        raise UserError(f"{where}: {shorten(value)} is too large; numbers have 64 bits")
    if type(value) is float and not math.isfinite(value):
        raise UserError(f"{where}: expected a finite number, found {value}")
    if type(value) is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where}: {shorten(value)} is not valid text") from None
    return value


def _check_plain(value: Any, where: str) -> None:
    """Check all values in any JSON with `_checked`. Raises UserError for nesting that is too deep for `repr`."""
    level = [value]
    for _ in range(DEEPEST):
        inner: list = []  # all values one level deeper
        for one in level:
            if isinstance(one, dict):
                inner += [*one, *one.values()]
            elif isinstance(one, (list, tuple)):
                inner += one
            else:
                _checked(one, where)
        if not inner:
            return
        level = inner
    raise UserError(f"{where}: nested more than {DEEPEST} levels deep")


def shorten(value: Any) -> str:
    """Describe a value of any size for a message, in one line of at most 40 characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= 40 else text[:37] + "..."

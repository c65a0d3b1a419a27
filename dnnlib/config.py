"""Strict conversion between dataclasses and JSON: what doesn't fit is refused, never dropped or guessed."""

import dataclasses
import types
import typing
from typing import Any, TypeVar

from dnnlib.errors import UserError

T = TypeVar("T")


def to_json(config: Any) -> Any:
    """A dataclass (nested ones, tuples and dictionaries included) as plain JSON values."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: to_json(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_json(value) for value in config]
    return config


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """Build the dataclass `cls` from JSON values.

    Raises UserError naming the field when one is missing, unknown, or of another type.
    """
    where = where or cls.__name__
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected an object, found {_shorten(data)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(set(data) - set(fields)):
        raise UserError(f"{where}: unknown field {unknown[0]!r}; known ones are {', '.join(fields)}")
    required = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in data]:
        raise UserError(f"{where}: the field {missing[0]!r} is missing")
    values = {name: _convert(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except UserError as error:  # what the class itself checks
        raise UserError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (inner,) = (a for a in args if a is not type(None))  # Optional is the only union that configurations use
        return _convert(inner, value, where)
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: expected a list, found {_shorten(value)}")
        fixed = origin is tuple and not (len(args) == 2 and args[1] is Ellipsis)
        if fixed and len(args) != len(value):
            raise UserError(f"{where}: expected {len(args)} values, found {len(value)}")
        inner = args if fixed else (args[0],) * len(value)
        return origin(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(inner, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected an object, found {_shorten(value)}")
        return {key: _convert(args[1], v, f"{where}[{key!r}]") for key, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is dict and isinstance(value, dict):
        return value
    if type(value) is not hint:  # not isinstance: True is no number here
        raise UserError(f"{where}: expected {hint.__name__}, found {_shorten(value)}")
    return value


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."

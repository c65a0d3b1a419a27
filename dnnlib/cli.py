"""Options of a command line, each made of one dataclass field that describes, defaults and checks it.

    @dataclass(frozen=True)
    class Options(Checked):
        data: str = option("Archive to train on.", metavar="ZIP")
        lr: float = option("Learning rate.", default=1e-3, above=0)
        width: int | None = option("Channels.", default=None, least=1, shown="as many as fit")

    @click.command(context_settings=HELP)
    @options(Options, "given")
    def main(given: Options): ...

Click parses what was typed; the record checks the values, whoever makes it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import click

from dnnlib.config import OPTIONAL, shorten
from dnnlib.errors import UserError, refusing

HELP = {"help_option_names": ["-h", "--help"]}  # context settings of every program
_LIMITS, _OPTION = "limits", "option"  # keys of a field's metadata


@dataclass(frozen=True)
class _Limits:
    """The values that a field can have, besides None."""

    name: str | None  # in messages; None: the field's name, or the option's
    least: float | None
    most: float | None
    above: float | None
    below: float | None
    choices: tuple[Any, ...] | None
    noun: str | None  # for what the value is, such as "a share"
    example: Any


@dataclass(frozen=True)
class _Option:
    """How a field looks on the command line."""

    help: str
    flag: str | None  # None: -- and the field's name
    short: str | None
    metavar: str | None
    shown: str | None  # the default in words
    switch: bool
    type: Any


def limited(
    *,
    default: Any = MISSING,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[Any] | None = None,
    noun: str | None = None,
    example: Any = None,
    name: str | None = None,
    optional: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """A dataclass's field whose values `check` holds to limits; numbers must be finite in any case.

    default: may be a function that makes it. noun, example: for messages such as "--fov 0: expected a length in mm
    above 0, such as 200". name: what messages call it. optional: JSON leaves it out while it has its default.
    """
    limits = _Limits(name, least, most, above, below, None if choices is None else tuple(choices), noun, example)
    known = {_LIMITS: limits, **(metadata or {}), **({OPTIONAL: True} if optional else {})}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=known)
    return dataclasses.field(default=default, metadata=known)


def option(
    help: str,
    *,
    default: Any = MISSING,
    flag: str | None = None,
    short: str | None = None,
    metavar: str | None = None,
    shown: str | None = None,
    switch: bool = False,
    type: Any = None,
    **limits: Any,
) -> Any:
    """A dataclass's field that is an option as well; without a default, the option is required.

    help: a sentence. flag: such as "--class", if it is not the field's name. short: such as "-n".
    shown: the default in words, where the value says too little.
    switch: a bool that is given without a value, such as --force.
    type: Click's type, where the annotation's will not do. limits: as in `limited`.
    """
    described = _Option(help, flag, short, metavar, shown, switch, type)
    if switch and default is MISSING:
        default = False
    return limited(default=default, metadata={_OPTION: described}, **limits)


def like(cls: Any, name: str, *, default: Any = MISSING) -> Any:
    """A dataclass's field with the limits of another class's field or option, by whose name messages call it."""
    (other,) = (field for field in dataclasses.fields(cls) if field.name == name)
    limits = dataclasses.replace(other.metadata[_LIMITS], name=_name(other))
    return dataclasses.field(default=default, metadata={_LIMITS: limits})


# --- checks -----------------------------------------------------------------------------------------------------------


class Checked:
    """Base of dataclasses whose fields are checked when a record is made. Their own __post_init__ calls this one."""

    def __post_init__(self) -> None:
        check(type(self), vars(self))


def check(cls: Any, values: Mapping[str, Any]) -> None:
    """Raise UserError for the first value beyond the limits of the field of its name; None is within all."""
    for field in dataclasses.fields(cls):
        limits: _Limits | None = field.metadata.get(_LIMITS)
        value = values.get(field.name)
        for one in value if isinstance(value, tuple) else (value,):
            if limits is not None and one is not None and not _fits(one, limits):
                whole = _of_annotation(typing.get_type_hints(cls)[field.name])[0] is int
                raise UserError(f"{_name(field)} {_show(one)}: expected {_expected(limits, whole)}")


def _name(field: dataclasses.Field) -> str:
    """What messages call a field."""
    return field.metadata[_LIMITS].name or (_flag(field) if _OPTION in field.metadata else field.name)


def _fits(value: Any, limits: _Limits) -> bool:
    if limits.choices is not None and value not in limits.choices:
        return False
    if not isinstance(value, (int, float)):
        return True
    return (
        (isinstance(value, int) or math.isfinite(value))
        and (limits.least is None or value >= limits.least)
        and (limits.most is None or value <= limits.most)
        and (limits.above is None or value > limits.above)
        and (limits.below is None or value < limits.below)
    )


def _expected(limits: _Limits, whole: bool) -> str:
    """What a value should have been, in words."""
    if limits.choices is not None:
        return f"one of {', '.join(map(_show, limits.choices))}"
    noun = limits.noun or ("a whole number" if whole else "a number")
    words = f"{noun} {_range(limits)}".rstrip()
    return words if limits.example is None else f"{words}, such as {_show(limits.example)}"


def _range(limits: _Limits) -> str:
    """Limits of numbers in words; empty if there are none."""
    lower = limits.above if limits.least is None else limits.least
    upper = limits.below if limits.most is None else limits.most
    if lower is None and upper is None:
        return ""
    if lower is None:
        return f"up to {_show(upper)}" if limits.below is None else f"below {_show(upper)}"
    if upper is None:
        return f"from {_show(lower)} up" if limits.above is None else f"above {_show(lower)}"
    if limits.least is None and limits.most is None:
        return f"between {_show(lower)} and {_show(upper)}"
    start = "above" if limits.least is None else "from"
    return f"{start} {_show(lower)} to {'below ' if limits.most is None else ''}{_show(upper)}"


def _show(value: Any) -> str:
    """A value as it would be typed, and not longer than a message bears."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= 40 and text.isprintable() else shorten(value)


# --- the command line -------------------------------------------------------------------------------------------------


def options(cls: Any, into: str, unless_given: str | None = None) -> Callable[[Callable], Callable]:
    """Decorate a click command: one option for each option-field of a dataclass, in their order.

    The command gets a record of the class as its argument `into`. With `unless_given`, words for where other values
    come from, it gets a dictionary of only those values that were given; a field's default then shows in help alone.
    Values beyond their limits end the program with a message.
    """
    fields = [field for field in dataclasses.fields(cls) if _OPTION in field.metadata]
    hints = typing.get_type_hints(cls)

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def with_record(*args: Any, **params: Any) -> Any:
            values = {field.name: params.pop(field.name) for field in fields}
            with refusing():
                if unless_given is None:
                    found: Any = cls(**values)
                else:
                    found = given(values)
                    check(cls, found)
            return function(*args, **{into: found}, **params)

        wrapped: Callable = with_record
        for field in reversed(fields):  # click lists the option first that was added last
            wrapped = _click_option(field, hints[field.name], unless_given)(wrapped)
        return wrapped

    return decorate


def _click_option(field: dataclasses.Field, hint: Any, unless_given: str | None) -> Callable[[Callable], Callable]:
    described, limits = field.metadata[_OPTION], field.metadata[_LIMITS]
    default: Any = field.default if field.default_factory is MISSING else field.default_factory
    names = [*filter(None, [described.short]), _flag(field), field.name]
    known = default is not MISSING and default is not None
    shown = described.shown or (default if known or unless_given is None else unless_given)
    help = _help(described.help, "" if described.switch else shown, _range(limits))
    if unless_given is not None:
        default = None
    if described.switch:
        return click.option(*names, is_flag=True, default=default, help=help)
    # Where an option may be repeated, Click's type is that of one value.
    kind, multiple = _of_annotation(hint)
    if limits.choices is not None:
        kind = click.Choice(limits.choices)
    elif kind is Path:
        kind = click.Path(path_type=Path)
    kind = described.type or kind
    form = {"type": kind, "multiple": multiple, "metavar": described.metavar or ("BOOL" if kind is bool else None)}
    if default is MISSING or (multiple and not default):
        return click.option(*names, **form, required=default is MISSING, help=help)
    return click.option(*names, **form, default=default, help=help)


def _help(sentence: str, default: Any, range: str) -> str:
    """A sentence with what is to be known of the values: Adam's rate.  [default: 0.001; above 0]"""
    nothing = default is MISSING or default is None or default in ("", ())
    words = default if isinstance(default, str) else _show(default)
    notes = [*([] if nothing else [f"default: {words}"]), *([range] if range else [])]
    return sentence + (f"  [{'; '.join(notes)}]" if notes else "")


def _flag(field: dataclasses.Field) -> str:
    described: _Option = field.metadata[_OPTION]
    return described.flag or f"--{field.name.replace('_', '-')}"


def _of_annotation(hint: Any) -> tuple[Any, bool]:
    """A field's type without None and repetition (int | None, tuple[int, ...] are int); and whether it is repeated."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (hint,) = (one for one in inner if one is not type(None))
        return _of_annotation(hint)
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return _of_annotation(inner[0])[0], True
    return hint, False


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were given: all but None and empty tuples."""
    return {name: value for name, value in values.items() if value is not None and value != ()}


def arguments(values: Mapping[str, Any]) -> list[str]:
    """Options as they are typed: {"map_depth": 2, "fp32": True} is --map-depth=2 --fp32=1; what is None is left out."""
    found = []
    for name, value in given(values).items():
        for one in value if isinstance(value, (list, tuple)) else (value,):
            found.append(f"--{name.replace('_', '-')}={int(one) if isinstance(one, bool) else one}")
    return found

"""Command-line options made from dataclass fields: one field holds description, default and limits of an option.

    @dataclass(frozen=True)
    class Options(Checked):
        data: str = option("Archive to train on.", metavar="ZIP")
        lr: float = option("Learning rate.", default=1e-3, above=0)
        width: int | None = option("Channels.", default=None, least=1, shown="as many as fit")

    @click.command(context_settings=HELP)
    @options(Options, "given")
    def main(given: Options): ...

Click parses the command line. The dataclass checks the values, so records made by other code are checked too.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
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
    """Allowed values of a field. None is always allowed."""

    name: str | None  # in messages; None: the option's name, or the field's if it is no option
    least: float | None  # value >= least
    most: float | None  # value <= most
    above: float | None  # value > above
    below: float | None  # value < below
    choices: tuple[Any, ...] | None  # None: any value within the limits
    noun: str | None  # what the value is, for messages, such as "a share"
    example: Any  # for messages


@dataclass(frozen=True)
class _Option:
    """Appearance of a field on the command line."""

    help: str
    flag: str | None  # None: -- and the field's name
    short: str | None  # such as "-n"
    metavar: str | None
    shown: str | None  # the default in words; None: its value
    switch: bool  # a bool that is given without a value, such as --force
    type: Any  # Click's type; None: made from the annotation


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
    """Declare a dataclass field with limits, which `check` enforces. Numbers must be finite in any case.

    default: a value, or a function that makes one. name: the field's name in messages.
    noun, example: words of messages, such as "--fov 0: expected a length in mm above 0, such as 200".
    optional: JSON leaves the field out while it has its default.
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
    """Declare a dataclass field that is also a command-line option. Without a default, the option is required.

    help: a sentence. flag: such as "--class", if it differs from the field's name. short: such as "-n".
    shown: the default in words, if its value would not explain itself.
    switch: a bool that is given without a value, such as --force.
    type: Click's type, if it differs from the annotation. limits: as in `limited`.
    """
    described = _Option(help, flag, short, metavar, shown, switch, type)
    if switch and default is MISSING:
        default = False
    return limited(default=default, metadata={_OPTION: described}, **limits)


def like(cls: Any, name: str, *, default: Any = MISSING) -> Any:
    """Declare a dataclass field with the limits of the field `name` of `cls`. Messages use the other field's name."""
    (other,) = (field for field in dataclasses.fields(cls) if field.name == name)
    limits = dataclasses.replace(other.metadata[_LIMITS], name=name_of(other))
    return dataclasses.field(default=default, metadata={_LIMITS: limits})


# --- checks -----------------------------------------------------------------------------------------------------------


class Checked:
    """Base class of dataclasses that check their fields when they are created.

    A subclass with its own __post_init__ must call this one.
    """

    def __post_init__(self) -> None:
        check(type(self), vars(self))


def check(cls: Any, values: Mapping[str, Any]) -> None:
    """Raise UserError for the first value outside the limits of its field. None is always allowed.

    values: field name -> value. Missing names are not checked.
    """
    for field in dataclasses.fields(cls):
        limits: _Limits | None = field.metadata.get(_LIMITS)
        value = values.get(field.name)
        # An option that may be repeated has several values, and each is checked.
        for one in value if isinstance(value, tuple) else (value,):
            if limits is not None and one is not None and not _fits(one, limits):
                whole = _of_annotation(typing.get_type_hints(cls)[field.name])[0] is int
                raise UserError(f"{name_of(field)} {show(one)}: expected {_expected(limits, whole)}")


def name_of(field: dataclasses.Field) -> str:
    """Name of a field in messages: its option's, if it has one or was declared `like` an option."""
    limits: _Limits | None = field.metadata.get(_LIMITS)
    return (limits and limits.name) or (_flag(field) if _OPTION in field.metadata else field.name)


def _fits(value: Any, limits: _Limits) -> bool:
    """Return whether a value is within the limits. Values that are not numbers are checked against choices only."""
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
    """Describe the allowed values. whole: the field holds whole numbers."""
    if limits.choices is not None:
        return f"one of {', '.join(map(show, limits.choices))}"
    noun = limits.noun or ("a whole number" if whole else "a number")
    words = f"{noun} {_range(limits)}".rstrip()
    return words if limits.example is None else f"{words}, such as {show(limits.example)}"


def _range(limits: _Limits) -> str:
    """Describe the limits of numbers, such as "from 1 up" or "above 0 to below 1". Empty if there are none."""
    lower = limits.above if limits.least is None else limits.least
    upper = limits.below if limits.most is None else limits.most
    if lower is None and upper is None:
        return ""
    if lower is None:
        return f"up to {show(upper)}" if limits.below is None else f"below {show(upper)}"
    if upper is None:
        return f"from {show(lower)} up" if limits.above is None else f"above {show(lower)}"
    if limits.least is None and limits.most is None:
        return f"between {show(lower)} and {show(upper)}"
    start = "above" if limits.least is None else "from"
    return f"{start} {show(lower)} to {'below ' if limits.most is None else ''}{show(upper)}"


def show(value: Any) -> str:
    """Format a value as a user would type it, but cut to the length of a message."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= 40 and text.isprintable() else shorten(value)


# --- the command line -------------------------------------------------------------------------------------------------


def options(
    cls: Any, into: str, unless_given: str | None = None, decides: Collection[str] = ()
) -> Callable[[Callable], Callable]:
    """Decorate a click command: add an option for each field of `cls` that was declared with `option`, in their order.

    into: the argument in which the command gets its values, as a record of type `cls`.
    unless_given: if it is set, the command gets a dictionary instead, with only those values that the user gave.
    It names the origin of the other values in the help text, such as "the recipe's".
    decides: names of fields whose value comes from there even though they have a default.
    Values outside their limits end the program with a message.
    """
    fields = [field for field in dataclasses.fields(cls) if _OPTION in field.metadata]
    hints = typing.get_type_hints(cls)

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def with_record(*args: Any, **params: Any) -> Any:
            # Take the values of this class out of `params`. The rest belongs to other decorators of the same command.
            values = {field.name: params.pop(field.name) for field in fields}
            with refusing():
                if unless_given is None:
                    found: Any = cls(**values)
                else:
                    found = given(values)
                    check(cls, found)
            return function(*args, **{into: found}, **params)

        wrapped: Callable = with_record
        for field in reversed(fields):  # click lists the option that was added last before the others
            wrapped = _click_option(field, hints[field.name], unless_given, field.name in decides)(wrapped)
        return wrapped

    return decorate


def _click_option(
    field: dataclasses.Field, hint: Any, unless_given: str | None, decided: bool
) -> Callable[[Callable], Callable]:
    """Return click's decorator for one option. hint: the field's annotation. unless_given, decided: see `options`."""
    described, limits = field.metadata[_OPTION], field.metadata[_LIMITS]
    default: Any = field.default if field.default_factory is MISSING else field.default_factory
    names = [*filter(None, [described.short]), _flag(field), field.name]
    known = default is not MISSING and default is not None and not decided
    shown = described.shown or (default if known or unless_given is None else unless_given)
    help = _help(described.help, "" if described.switch else shown, _range(limits))
    if unless_given is not None:
        default = None  # None then shows that the user did not give the option
    if described.switch:
        return click.option(*names, is_flag=True, default=default, help=help)
    # An option that may be repeated has Click's type of a single value.
    kind, multiple = _of_annotation(hint)
    if limits.choices is not None:
        kind = click.Choice(limits.choices)
    elif kind is Path:
        kind = click.Path(path_type=Path)
    kind = described.type or kind
    form = {"type": kind, "multiple": multiple, "metavar": described.metavar or ("BOOL" if kind is bool else None)}
    # Click takes no default for a required option. For a repeated one, it makes the empty tuple itself.
    if default is MISSING or (multiple and not default):
        return click.option(*names, **form, required=default is MISSING, help=help)
    return click.option(*names, **form, default=default, help=help)


def _help(sentence: str, default: Any, range: str) -> str:
    """Append default and limits to a help sentence, as in "Learning rate.  [default: 0.001; above 0]"."""
    nothing = default is MISSING or default is None or default in ("", ())
    words = default if isinstance(default, str) else show(default)
    notes = [*([] if nothing else [f"default: {words}"]), *([range] if range else [])]
    return sentence + (f"  [{'; '.join(notes)}]" if notes else "")


def _flag(field: dataclasses.Field) -> str:
    """Name of an option on the command line, such as --map-depth."""
    described: _Option = field.metadata[_OPTION]
    return described.flag or f"--{field.name.replace('_', '-')}"


def _of_annotation(hint: Any) -> tuple[Any, bool]:
    """Return the type of a single value, and whether it may be repeated: int | None -> int, tuple[int, ...] -> int."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (hint,) = (one for one in inner if one is not type(None))
        return _of_annotation(hint)
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return _of_annotation(inner[0])[0], True
    return hint, False


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the user gave: all but None and empty tuples."""
    return {name: value for name, value in values.items() if value is not None and value != ()}


def arguments(values: Mapping[str, Any]) -> list[str]:
    """Format options for a command line: {"map_depth": 2, "fp32": True} -> --map-depth=2 --fp32=1. Leaves out None."""
    found = []
    for name, value in given(values).items():
        for one in value if isinstance(value, (list, tuple)) else (value,):
            found.append(f"--{name.replace('_', '-')}={int(one) if isinstance(one, bool) else one}")
    return found

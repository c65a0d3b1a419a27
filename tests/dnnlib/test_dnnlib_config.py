"""Dataclasses to JSON and back. Values that do not fit are refused, with the name of their field."""

from dataclasses import dataclass

import pytest

from dnnlib import config
from dnnlib.errors import UserError


@dataclass(frozen=True)
class Inner:
    x: float
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    pair: tuple[int, int]
    by_name: dict[str, Inner]
    maybe: int | None = None


@dataclass(frozen=True)
class Later:
    x: int
    more: tuple[int, ...] = config.optional(())


EXAMPLE = Outer(Inner(1.5, ("a", "b")), (1, 2), {"k": Inner(2)}, None)


def test_dataclasses_survive_json():
    assert config.from_json(Outer, config.to_json(EXAMPLE)) == EXAMPLE


def test_optional_fields_are_in_json_only_where_they_say_something():
    assert config.to_json(Later(1)) == {"x": 1}
    assert config.to_json(Later(1, (2,))) == {"x": 1, "more": [2]}
    for one in (Later(1), Later(1, (2,))):
        assert config.from_json(Later, config.to_json(one)) == one


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pair": [1, 2, 3]}, r"Outer.pair: expected 2 values, found 3"),
        ({"pair": [1, "2"]}, r"Outer.pair\[1\]: expected int, found '2'"),
        ({"pair": [1, True]}, r"Outer.pair\[1\]: expected int, found True"),
        ({"inner": {"x": "1"}}, r"Outer.inner.x: expected float, found '1'"),
        ({"inner": {}}, r"Outer.inner: the field 'x' is missing"),
        ({"inner": 3}, r"Outer.inner: expected an object, found 3"),
        ({"by_name": {"k": {"x": 1, "y": 2}}}, r"Outer.by_name\['k'\]: unknown field 'y'"),
        ({"by_name": []}, r"Outer.by_name: expected an object"),
        ({"maybe": 1.5}, r"Outer.maybe: expected int, found 1.5"),
    ],
)
def test_json_that_does_not_fit_is_refused_by_field(change, message):
    with pytest.raises(UserError, match=message):
        config.from_json(Outer, {**config.to_json(EXAMPLE), **change})


@pytest.mark.parametrize("text", ["[" * 9000 + "]" * 9000, '{"a": ' * 3000 + "1" + "}" * 3000])
def test_deep_nesting_is_refused_by_every_python(text):
    """Parsers of some Python versions accept any depth, but code after them could not follow it."""
    with pytest.raises(ValueError, match="nested more than 50 levels deep"):
        config.parse_json(text)
    assert config.parse_json("[" * 60 + "]" * 60)[0] and config.parse_json("null") is None

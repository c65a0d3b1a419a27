"""Words and tables for the terminal."""

import pytest

from dnnlib import text
from dnnlib.errors import UserError


def test_parse_integers():
    assert text.parse_integers("0-3, 7,9-9", limit=10) == [0, 1, 2, 3, 7, 9]
    for wrong in ("", "3-1", "a", "1..3", "-1"):
        with pytest.raises(UserError, match="list of whole numbers"):
            text.parse_integers(wrong, limit=10)
    with pytest.raises(UserError, match="99999999999 is too large: numbers go up to 9"):
        text.parse_integers("0-99999999999", limit=10)


@pytest.mark.parametrize(
    "seconds, expected", [(12.4, "12s"), (185, "3m 05s"), (3723, "1h 02m 03s"), (183840, "2d 03h 04m")]
)
def test_format_time(seconds, expected):
    assert text.format_time(seconds) == expected


def test_format_table():
    table = text.format_table(["name", "n"], [["a", 1], ["long name", 234]])
    assert table == "name         n\n---------  ---\na            1\nlong name  234"

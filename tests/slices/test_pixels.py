"""Pixel sizes: comparisons with a tolerance of 1 %, and words."""

import pytest

from slices.pixels import PixelSize


def test_least_and_most():
    assert PixelSize.of([2.0, 1.0, 1.5]) == (1.0, 2.0) and PixelSize.of([]) is None


@pytest.mark.parametrize(
    "size, words",
    [
        ((3.125, 3.125), "3.12 mm"),
        ((3.125, 3.75), "3.12 to 3.75 mm"),
        ((1.0, 1.0099), "1 mm"),
        ((1.0, 1.02), "1 to 1.02 mm"),
        ((1.5, 2), "1.5 to 2 mm"),
    ],
)
def test_words(size, words):
    assert str(PixelSize(*size)) == words


def test_more_digits():
    assert PixelSize(0.9375, 0.9375).describe(4) == "0.9375 mm"


def test_what_differs_by_less_than_a_hundredth_is_one_size():
    size = PixelSize(1.0, 2.0)
    assert not size.is_one_size and PixelSize(1.0, 1.009).is_one_size
    for other, within, like in (
        ((1.0, 2.0), True, True),
        ((0.991, 2.019), True, True),
        ((1.2, 1.9), True, False),
        ((0.98, 2.0), False, False),
        ((1.0, 2.03), False, False),
    ):
        assert PixelSize(*other).is_within(size) == within
        assert PixelSize(*other).is_like(size) == like

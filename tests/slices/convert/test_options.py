"""Options of a conversion: values that make no sense are refused."""

import pytest

from dnnlib.errors import UserError
from slices.convert.options import ConvertOptions


def test_options_are_checked():
    for wrong, words in (
        (dict(resolution=100), "power of two from 16 up, such as 64 or 128"),
        (dict(resolution=8), "such as 16 or 32"),
        (dict(resolution=-4), "power of two"),
        (dict(fov=0.0), "length in mm"),
        (dict(fov=float("nan")), "length in mm"),
        (dict(min_tumor_pixels=0), "from 1 up"),
        (dict(test_fraction=1.0), "between 0 and 1"),
    ):
        with pytest.raises(UserError, match=words):
            ConvertOptions(**wrong)

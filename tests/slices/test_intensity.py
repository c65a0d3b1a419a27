"""Intensities and gray levels: windows and round trips."""

import numpy as np
import pytest

from slices.intensity import GrayLevels, apply_window, intensity_window, undo_window
from slices.schema import BRIGHTEST, DARKEST, OUTSIDE


def test_gray_levels_inside_a_window():
    values = np.array([-50.0, 100, 227, 354, 1e5])
    np.testing.assert_allclose(apply_window(values, (100.0, 354.0)), [1, 1, 128, 255, 255])
    with np.errstate(all="raise"):
        assert set(apply_window(np.array([6.0, 7.0, 7.0, 8.0]), (7.0, 7.0))) == {1.0}  # no contrast: no bright pixel
    assert intensity_window(np.full(10, 7, np.float32)) == (7.0, 7.0)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", ">i2"])
def test_integers_are_counted_and_looked_up_as_if_they_were_sorted_and_computed(dtype):
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 199, 200, 201, 5000):
        values = rng.normal(90, 40, size).clip(0, 255).astype(dtype)
        expected = np.percentile(values.astype(np.float64), (0.5, 99.5))
        np.testing.assert_allclose(intensity_window(values), expected, rtol=1e-12)
        for window in (intensity_window(values), (90.0, 90.0), (30.25, 31.5), (-5000.0, 70000.0)):
            scale = GrayLevels(window, values.dtype)
            np.testing.assert_array_equal(scale.levels(values), apply_window(values, window))
            np.testing.assert_array_equal(scale.rounded(values), np.rint(apply_window(values, window)))


@pytest.mark.parametrize("window", [(1.0, 255.0), (-3.5, 12.25), (0.0, 1e6), (7.0, 7.0)])
def test_gray_levels_come_back(window):
    """Gray levels -> intensities -> gray levels. A window of one intensity has one gray level only."""
    levels = np.arange(256, dtype=np.uint8)
    intensities = undo_window(levels, window)
    assert intensities.dtype == np.float32 and intensities[OUTSIDE] == 0
    assert (intensities[DARKEST], intensities[BRIGHTEST]) == window
    inside = levels[DARKEST:]
    scale = GrayLevels(window, intensities.dtype)
    expected = inside if window[0] < window[1] else np.full_like(inside, DARKEST)
    np.testing.assert_array_equal(scale.rounded(intensities[DARKEST:]), expected)


def test_intensities_come_back_but_for_rounding_and_clipping():
    values = np.random.default_rng(0).normal(300, 100, 5000).astype(np.int16)
    low, high = window = intensity_window(values)
    back = undo_window(GrayLevels(window, values.dtype).rounded(values), window)
    assert np.abs(np.clip(values, low, high) - back).max() <= (high - low) / 254 / 2 * (1 + 1e-6)

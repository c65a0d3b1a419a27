"""Intensities ↔ gray levels: the window of a contrast is mapped linearly to the gray levels, and back."""

from __future__ import annotations

import numpy as np

from slices.schema import BRIGHTEST, DARKEST, OUTSIDE

WINDOW = (0.5, 99.5)  # percentiles of intensities in the head: the darkest and the brightest gray level
_TABLE = 1 << 16  # most integers in a window; a wider one gets no table


def intensity_window(intensities: np.ndarray) -> tuple[float, float]:
    """(low, high): the WINDOW percentiles of a contrast's intensities in the head, interpolated as NumPy does.

    Integers of up to 16 bits are counted, which is faster than sorting.
    """
    values = intensities.ravel()
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        low, high = np.percentile(values.astype(np.float64, copy=False), WINDOW)
        return float(low), float(high)
    least = int(values.min())
    below = np.cumsum(np.bincount(values.astype(np.intp) - least))  # [i]: number of values up to least + i
    found = []
    for share in WINDOW:
        # The percentile's rank among the sorted values, and the two values that stand there, found in the counts.
        rank = (len(values) - 1) * (share / 100)
        whole = int(rank)
        low, high = (
            least + int(np.searchsorted(below, n, side="right")) for n in (whole, min(whole + 1, len(values) - 1))
        )
        found.append(low + (high - low) * (rank - whole))
    return found[0], found[1]


def apply_window(intensities: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Intensities -> gray levels from DARKEST to BRIGHTEST, clipped to the window: float64, not rounded."""
    low, high = window
    share = np.clip(intensities.astype(np.float64) - low, 0, high - low) / (high - low if high > low else 1)
    return DARKEST + (BRIGHTEST - DARKEST) * share


def undo_window(levels: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Stored gray levels, uint8 -> intensities, float32, same shape. The background becomes 0."""
    low, high = window
    # The intensity of every possible gray level, [256]: looked up below.
    table = low + (np.arange(BRIGHTEST + 1) - DARKEST) / (BRIGHTEST - DARKEST) * (high - low)
    table[OUTSIDE] = 0
    return table.astype(np.float32)[levels]


class GrayLevels:
    """`apply_window` for the pictures of one contrast. Integers are looked up in a table, which is faster."""

    def __init__(self, window: tuple[float, float], dtype: np.dtype) -> None:
        self.window = window
        self._table: np.ndarray | None = None  # gray levels of the integers from _first to _last, float64
        self._rounded: np.ndarray | None = None  # the same, uint8
        first, last = int(np.floor(window[0])), int(np.ceil(window[1]))
        if dtype.kind in "iu" and last - first < _TABLE:
            # One entry more on either side stands for everything beyond the window.
            limits = np.iinfo(dtype)
            self._first, self._last = max(first - 1, limits.min), min(last + 1, limits.max)
            self._table = apply_window(np.arange(self._first, self._last + 1), window)
            self._rounded = np.rint(self._table).astype(np.uint8)

    def levels(self, picture: np.ndarray) -> np.ndarray:
        """Intensities -> gray levels, float64, not rounded."""
        return apply_window(picture, self.window) if self._table is None else self._table[self._places(picture)]

    def rounded(self, picture: np.ndarray) -> np.ndarray:
        """Intensities -> gray levels, uint8."""
        if self._rounded is None:
            return np.rint(apply_window(picture, self.window)).astype(np.uint8)
        return self._rounded[self._places(picture)]

    def _places(self, picture: np.ndarray) -> np.ndarray:
        """Intensities -> indices into the tables."""
        return np.clip(picture, self._first, self._last).astype(np.intp) - self._first

"""Pixel sizes: which sizes count as equal, and how messages show them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

SAME = 0.01  # edges that differ by less than this share count as equal


class PixelSize(NamedTuple):
    """The range of edges that the square pixels of some slices have, in mm."""

    least: float
    most: float

    @classmethod
    def of(cls, edges: Iterable[float]) -> PixelSize | None:
        """The range of these edges; None if there are none."""
        known = list(edges)
        return cls(min(known), max(known)) if known else None

    @property
    def is_one_size(self) -> bool:
        """Whether all pixels count as equal."""
        return self.most <= self.least * (1 + SAME)

    def is_within(self, known: PixelSize) -> bool:
        """Whether these edges lie within the known range."""
        return self.least >= known.least * (1 - SAME) and self.most <= known.most * (1 + SAME)

    def is_like(self, other: PixelSize) -> bool:
        """Whether both ranges have the same ends."""
        return all(math.isclose(a, b, rel_tol=SAME) for a, b in zip(self, other, strict=True))

    def describe(self, digits: int = 3) -> str:
        """The range in words, such as "3.12 mm" or "3.12 to 3.75 mm"."""
        least, most = f"{self.least:.{digits}g}", f"{self.most:.{digits}g}"
        return f"{least} mm" if self.is_one_size or least == most else f"{least} to {most} mm"

    def __str__(self) -> str:
        return self.describe()

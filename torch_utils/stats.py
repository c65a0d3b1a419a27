"""Training statistics: moments of reported values, collected once per tick."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Moments(NamedTuple):
    """Number, mean and standard deviation of the values of a statistic."""

    num: int
    mean: float
    std: float


class Statistics:
    """Adds up count, sum and sum of squares of each statistic. `collect` returns their moments and starts again."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}  # float64 [3]: count, sum, sum of squares

    def report(self, name: str, values: torch.Tensor | float) -> None:
        """Add values to a statistic."""
        # The sums stay on the device of the values until `collect`: reading them would make a GPU wait at every report.
        values = torch.as_tensor(values).detach().to(torch.float64).flatten()
        sums = torch.stack([torch.full_like(values, 1).sum(), values.sum(), values.square().sum()])
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def collect(self) -> dict[str, Moments]:
        """Return the moments of all values that were reported since the last call, by name."""
        result = {}
        for name, sums in sorted(self._sums.items()):
            num, total, squares = sums.tolist()
            if num:
                mean = total / num
                # Variance as mean of squares − square of mean. Rounding may make it slightly negative.
                result[name] = Moments(int(num), mean, math.sqrt(max(squares / num - mean**2, 0)))
        self._sums.clear()
        return result

"""Training statistics: sums over the samples of a phase, and moments of the values of a tick."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch


class Moments(NamedTuple):
    """Number, mean and standard deviation of the values of a statistic."""

    num: int
    mean: float
    std: float


class Sums:
    """Named vectors that add up over the samples of a phase, in all parts."""

    def __init__(self) -> None:
        self.vectors: dict[str, torch.Tensor] = {}

    def add(self, name: str, vector: torch.Tensor) -> None:
        """Add a vector [n] to the sum of this name."""
        vector = vector.detach()
        self.vectors[name] = self.vectors[name] + vector if name in self.vectors else vector

    def report(self, name: str, values: torch.Tensor | float) -> None:
        """Add values to a statistic: their count, sum and sum of squares, float64 [3]."""
        # The sums stay on the device of the values: reading them would make a GPU wait at every report.
        self.add(name, _count_sum_squares(values))


class Statistics:
    """Adds up count, sum and sum of squares of each statistic. `collect` returns their moments and starts again."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}  # float64 [3]: count, sum, sum of squares

    def report(self, name: str, values: torch.Tensor | float) -> None:
        """Add values to a statistic."""
        self.add({name: _count_sum_squares(values)})

    def add(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Add the sums of statistics, [3] each."""
        for name, vector in sums.items():
            self.sums[name] = self.sums[name] + vector if name in self.sums else vector.to(torch.float64)

    def collect(self) -> dict[str, Moments]:
        """Return the moments of all values that were reported since the last call, by name."""
        result = {}
        for name, sums in sorted(self.sums.items()):
            num, total, squares = sums.tolist()
            if num:
                mean = total / num
                # Variance as mean of squares − square of mean. Rounding may make it slightly negative.
                result[name] = Moments(int(num), mean, math.sqrt(max(squares / num - mean**2, 0)))
        self.sums.clear()
        return result


def _count_sum_squares(values: torch.Tensor | float) -> torch.Tensor:
    """Count, sum and sum of squares of values, float64 [3]."""
    values = torch.as_tensor(values).detach().to(torch.float64).flatten()
    return torch.stack([torch.full_like(values, 1).sum(), values.sum(), values.square().sum()])

"""The order in which training sees its data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch


class EndlessSampler(torch.utils.data.Sampler[int]):
    """Indices of 0..size − 1 without end: a shuffled order that keeps being stirred.

    Each index that was used trades places with one that was used at most window · size steps before. So passes through
    the data differ, and the same item does not come back at once.
    """

    def __init__(self, size: int, seed: int = 0, window: float = 0.5) -> None:
        assert size > 0 and 0 <= window <= 1
        self.size, self.seed = size, seed
        self.reach = int(np.rint(size * window))

    def __iter__(self) -> Iterator[int]:
        random = np.random.RandomState(self.seed)
        order = random.permutation(self.size)
        position = 0
        while True:
            yield int(order[position])
            if self.reach >= 2:
                other = (position - random.randint(self.reach)) % self.size
                order[[position, other]] = order[[other, position]]  # they trade places
            position = (position + 1) % self.size

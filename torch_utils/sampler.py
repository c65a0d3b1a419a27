"""Order of the training data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch


class EndlessSampler(torch.utils.data.Sampler[int]):
    """Endless sequence of indices from 0 to size − 1, in a shuffled order that changes all the time.

    A used index trades places with another one, used at most window · size steps earlier. Passes through the data then
    differ, but an item never returns soon after it was used.
    """

    def __init__(self, size: int, seed: int = 0, window: float = 0.5) -> None:
        assert size > 0 and 0 <= window <= 1
        self.size, self.seed = size, seed
        self.reach = int(np.rint(size * window))  # how many steps back an index may trade places

    def __iter__(self) -> Iterator[int]:
        random = np.random.RandomState(self.seed)
        order = random.permutation(self.size)
        position = 0
        while True:
            yield int(order[position])
            if self.reach >= 2:
                other = (position - random.randint(self.reach)) % self.size
                # NumPy copies the right-hand side first, so this swaps.
                order[[position, other]] = order[[other, position]]
            position = (position + 1) % self.size

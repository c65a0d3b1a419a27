"""Endless order of the training data, and the share of it that one process computes. Both are functions of a position.

A minibatch of N samples is made of P parts: part p holds its samples p, p + P, p + 2·P, … Of R processes, process r
computes the parts r, r + R, r + 2·R, …
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


class ShuffledOrder:
    """Endless sequence of the items 0 to size − 1: one permutation after the other, each called an epoch.

    The item at a position depends on the seed and the position alone, so that a reader may begin anywhere.
    """

    def __init__(self, size: int, seed: int) -> None:
        assert size > 0, size
        self.size, self.seed = size, seed
        self._epoch: int | None = None  # whose permutation is at hand
        self._permutation = np.empty(0, np.int64)

    def __getitem__(self, position: int) -> int:
        """Item at a position 0, 1, 2, … It takes a moment when the epoch is another one than that of the last call."""
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, self._permute(epoch)
        return int(self._permutation[place])

    def _permute(self, epoch: int) -> np.ndarray:
        """Permutation of an epoch, int64 [size]."""
        # NumPy keeps the bits of Philox the same in all its versions, but not what Generator.permutation makes of them.
        bits = np.random.Philox(key=np.array([self.seed, epoch], np.uint64)).random_raw(self.size)
        return np.argsort(bits, kind="stable")


def samples_of_rank(batch: int, parts: int, rank: int = 0, ranks: int = 1) -> list[int]:
    """Numbers of the samples of a minibatch that one of `ranks` processes computes: its first part, then its next.

    Splitting the list into lists of batch / parts samples gives the parts.
    """
    if batch % parts or parts % ranks or not 0 <= rank < ranks:
        raise ValueError(f"process {rank} of {ranks}, with {parts} parts of a minibatch of {batch}")
    return [sample for part in range(rank, parts, ranks) for sample in range(part, batch, parts)]


@dataclass(frozen=True)
class ShareOfMinibatches:
    """The items of each minibatch that one process computes, in the order of `samples_of_rank`. It has no end."""

    order: ShuffledOrder
    batch: int  # samples of a minibatch, over all processes
    parts: int
    rank: int = 0
    ranks: int = 1
    first_step: int = 0  # begin with the minibatch of this step

    def __iter__(self) -> Iterator[list[int]]:
        samples = samples_of_rank(self.batch, self.parts, self.rank, self.ranks)
        for step in itertools.count(self.first_step):
            # In ascending positions, because a minibatch may reach into the next epoch.
            items = [self.order[step * self.batch + sample] for sample in range(self.batch)]
            yield [items[sample] for sample in samples]

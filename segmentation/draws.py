"""Which slices a U-Net's training draws, in which order, and which are flipped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Draw(NamedTuple):
    """One training example to come: which slice of the union, None for a blank one, and whether it is flipped."""

    slice: int | None
    flip: bool


@dataclass(frozen=True)
class Drawn:
    """How many slices a training draws: with lesion, without, and blank ones, which are of no archive."""

    with_lesion: int
    lesion_free: int
    empty: int

    def __str__(self) -> str:
        return f"{self.with_lesion} with lesion, {self.lesion_free} without, {self.empty} empty"


class Draws:
    """Batches of draws: slices shuffled again and again, so that each is used as often as others; half are flipped.

    empty: share of the draws that are blank. lesion_free: share that are slices of `without_lesion`, while the rest are
    others; None: the rest are slices as they come. Shares are exact for the whole, and spread evenly over it.
    All of it follows from the seed, whatever the number of processes that read.
    """

    def __init__(
        self,
        slices: int,
        batch: int,
        steps: int,
        seed: int,
        empty: float = 0,
        lesion_free: float | None = None,
        without_lesion: Sequence[int] = (),
    ) -> None:
        self.batch, self.steps, self.seed = batch, steps, seed
        self.total = batch * steps
        self.blanks = round(self.total * empty)
        self.filled = self.total - self.blanks
        self.free = round(self.total * (lesion_free or 0))  # of the filled ones, those that are to be without lesion
        without, everything = np.array(without_lesion, np.int64), np.arange(slices)
        self.others = _Deck(everything if lesion_free is None else np.setdiff1d(everything, without), (seed, 0))
        self.without = _Deck(without, (seed, 1))

    def __len__(self) -> int:
        return self.steps

    def numbers(self) -> Iterator[int | None]:
        """The slice of every draw, None for a blank one."""
        others, without = iter(self.others), iter(self.without)
        filled = 0
        for k in range(self.total):
            if _is_due(k, self.blanks, self.total):
                yield None
                continue
            yield next(without if _is_due(filled, self.free, self.filled) else others)
            filled += 1

    def __iter__(self) -> Iterator[list[Draw]]:
        numbers, rng = self.numbers(), np.random.default_rng((self.seed, 2))
        for _ in range(self.steps):
            flips = (rng.random(self.batch) < 0.5).tolist()
            yield [Draw(*pair) for pair in zip(itertools.islice(numbers, self.batch), flips, strict=True)]


class _Deck:
    """Numbers of slices without end: all of them shuffled, and shuffled again."""

    def __init__(self, slices: np.ndarray, seed: tuple[int, ...]) -> None:
        self.slices, self.seed = slices, seed

    def __iter__(self) -> Iterator[int]:
        for n in itertools.count():
            yield from self._shuffled(n).tolist()

    def count(self, of: np.ndarray, first: int) -> int:
        """How many of the first ones are in `of`, bool for every slice."""
        if not first:
            return 0
        passes, rest = divmod(first, len(self.slices))
        return int(passes * of[self.slices].sum() + of[self._shuffled(passes)[:rest]].sum())

    def _shuffled(self, n: int) -> np.ndarray:
        """The order of pass n."""
        return np.random.default_rng((*self.seed, n)).permutation(self.slices)


def _is_due(k: int, count: int, total: int) -> bool:
    """Whether draw k of `total` is one of `count` that are spread evenly over them."""
    return (k + 1) * count // total > k * count // total

"""Which slices a U-Net's training draws, in which order, and which of them are flipped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from segmentation.config import TrainUNetConfig


class Draw(NamedTuple):
    """One training example to come."""

    slice: int | None  # its number in the data set; None: a blank slice, which no archive holds
    flip: bool  # left to right


@dataclass(frozen=True)
class Drawn:
    """How many slices a training draws."""

    with_lesion: int
    lesion_free: int  # slices of the archives that have no lesion
    empty: int  # blank ones

    def __str__(self) -> str:
        return f"{self.with_lesion} with lesion, {self.lesion_free} without, {self.empty} empty"


class Draws:
    """Batches of draws, one for every step of a training.

    Slices are shuffled again and again, so that each is used as often as others of its sort; half of them are flipped.
    The shares `empty` and `lesion_free` of the configuration are exact over the whole training and spread evenly over
    it. Everything follows from the seed, whatever the number of processes that read.
    """

    def __init__(
        self,
        has_lesion: np.ndarray,  # bool [number of slices]
        config: TrainUNetConfig,
    ) -> None:
        self._has_lesion = has_lesion
        self.batch, self.steps, self.seed = config.batch, config.steps, config.seed
        self.total = self.batch * self.steps
        self.num_empty = round(self.total * config.empty)
        self.num_filled = self.total - self.num_empty
        self.num_lesion_free = round(self.total * (config.lesion_free or 0))  # that are drawn for having no lesion
        # The others are any slices as they come, unless a share is asked for: then all of them have a lesion.
        others = np.arange(len(has_lesion)) if config.lesion_free is None else np.flatnonzero(has_lesion)
        self._others = _Deck(others, (self.seed, 0))
        self._lesion_free = _Deck(np.flatnonzero(~has_lesion), (self.seed, 1))

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Draw]]:
        numbers, rng = self.numbers(), np.random.default_rng((self.seed, 2))
        for _ in range(self.steps):
            flips = (rng.random(self.batch) < 0.5).tolist()
            chosen = itertools.islice(numbers, self.batch)  # takes the next ones; the following step goes on from there
            yield [Draw(number, flip) for number, flip in zip(chosen, flips, strict=True)]

    def numbers(self) -> Iterator[int | None]:
        """The slice of every draw, None for a blank one."""
        others, lesion_free = iter(self._others), iter(self._lesion_free)
        filled = 0
        for k in range(self.total):
            if _is_due(k, self.num_empty, self.total):
                yield None
            else:
                yield next(lesion_free if _is_due(filled, self.num_lesion_free, self.num_filled) else others)
                filled += 1

    def count(self) -> Drawn:
        """How many slices of each sort are drawn, found without drawing them."""
        with_lesion = self._others.count(self._has_lesion, self.num_filled - self.num_lesion_free)
        return Drawn(with_lesion, self.num_filled - with_lesion, self.num_empty)


class _Deck:
    """Numbers of slices without end: all of them shuffled, and shuffled again."""

    def __init__(self, slices: np.ndarray, seed: tuple[int, ...]) -> None:
        self.slices, self.seed = slices, seed

    def __iter__(self) -> Iterator[int]:
        for n in itertools.count():
            yield from self._shuffled(n).tolist()

    def count(self, marked: np.ndarray, first: int) -> int:
        """How many of the `first` numbers are marked, in a bool for every slice."""
        if not first:
            return 0
        passes, rest = divmod(first, len(self.slices))  # a whole pass takes every slice once
        return int(passes * marked[self.slices].sum() + marked[self._shuffled(passes)[:rest]].sum())

    def _shuffled(self, n: int) -> np.ndarray:
        """The order of pass n."""
        return np.random.default_rng((*self.seed, n)).permutation(self.slices)


def _is_due(k: int, count: int, total: int) -> bool:
    """Whether draw k of `total` is one of `count` that are spread evenly over them."""
    return (k + 1) * count // total > k * count // total

"""Draws of a U-Net's training: which slices, in which order. augment.py says what happens to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from segmentation.config import TrainUNetConfig


class Draw(NamedTuple):
    """One training example to come."""

    slice: int | None  # its number in the data set; None: a blank slice, which is in no archive
    number: int  # of the draw, from 0; what happens to the slice by chance depends on it


@dataclass(frozen=True)
class Drawn:
    """How many slices a training draws."""

    with_lesion: int
    lesion_free: int  # slices of the archives, without lesion
    empty: int  # blank slices

    def __str__(self) -> str:
        return f"{self.with_lesion} with lesion, {self.lesion_free} without, {self.empty} empty"


class Draws:
    """Batches of draws, one for each step of a training.

    Slices are shuffled again and again, so each is used as often as others of its kind. The shares `empty` and
    `lesion_free` of the configuration hold exactly over the whole training, spread evenly over it.
    The draws depend on the seed, not on the number of processes that read slices.
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
        self.num_lesion_free = round(self.total * (config.lesion_free or 0))  # drawn from slices without lesion only
        # The other draws take any slice. Only if --lesion-free gives a share, they take slices with a lesion.
        others = np.arange(len(has_lesion)) if config.lesion_free is None else np.flatnonzero(has_lesion)
        self._others = _Deck(others, (self.seed, 0))
        self._lesion_free = _Deck(np.flatnonzero(~has_lesion), (self.seed, 1))

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = (Draw(chosen, number) for number, chosen in enumerate(self.slices()))
        for _ in range(self.steps):
            yield list(itertools.islice(draws, self.batch))  # advances `draws`: the next step goes on from there

    def slices(self) -> Iterator[int | None]:
        """The slice of each draw; None for a blank one."""
        others, lesion_free = iter(self._others), iter(self._lesion_free)
        filled = 0
        for k in range(self.total):
            if _is_due(k, self.num_empty, self.total):
                yield None
            else:
                # Spread over the draws that aren't blank, so `filled` counts these.
                yield next(lesion_free if _is_due(filled, self.num_lesion_free, self.num_filled) else others)
                filled += 1

    def count(self) -> Drawn:
        """How many slices of each kind are drawn, computed without drawing them."""
        with_lesion = self._others.count(self._has_lesion, self.num_filled - self.num_lesion_free)
        return Drawn(with_lesion, self.num_filled - with_lesion, self.num_empty)


class _Deck:
    """Endless slice numbers: pass after pass over all of them, each pass in a new random order."""

    def __init__(self, slices: np.ndarray, seed: tuple[int, ...]) -> None:
        self.slices, self.seed = slices, seed

    def __iter__(self) -> Iterator[int]:
        for n in itertools.count():
            yield from self._shuffled(n).tolist()

    def count(self, marked: np.ndarray, first: int) -> int:
        """How many of the first numbers are marked. marked: bool [number of slices]."""
        if not first:
            return 0
        passes, rest = divmod(first, len(self.slices))  # a whole pass has every slice once: only the rest is shuffled
        return int(passes * marked[self.slices].sum() + marked[self._shuffled(passes)[:rest]].sum())

    def _shuffled(self, n: int) -> np.ndarray:
        """The order of pass n."""
        return np.random.default_rng((*self.seed, n)).permutation(self.slices)


def _is_due(k: int, count: int, total: int) -> bool:
    """Whether draw k is one of `count` draws that are spread evenly over `total`."""
    # k·count / total rises from 0 to `count`; a draw is due wherever its integer part rises.
    return (k + 1) * count // total > k * count // total

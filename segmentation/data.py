"""Slices of one or several archives for a U-Net: contrasts in, class indices out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from dnnlib.errors import UserError
from dnnlib.files import sha256
from slices.archive import ArchiveReader, require_same_kind
from slices.edit import refuse_twice
from slices.leaks import refuse_leaks
from torch_utils.loading import minibatches

MEMORY = 2 << 30  # bytes of slices that are held in memory; more are read from the archives at every step


@dataclass(frozen=True)
class ArchiveFacts:
    """Which archive was used: file name, SHA-256, number of slices and of patients."""

    file: str
    sha256: str
    slices: int
    patients: int


def describe(archive: ArchiveReader) -> ArchiveFacts:
    return ArchiveFacts(archive.path.name, sha256(archive.path), len(archive), len(archive.info.patients))


class Draw(NamedTuple):
    """One training example to come: which slice of the union, and whether it is flipped left to right."""

    slice: int
    flip: bool


class Pair(NamedTuple):
    """Image and truth. In a batch both have N in front."""

    contrasts: torch.Tensor  # uint8 [C, H, W]
    indices: torch.Tensor  # uint8 [H, W], 0 for the background


class UnionOfArchives(torch.utils.data.Dataset):
    """The slices of all archives, one after the other. All must have the same schema and resolution.

    memory: hold the slices in memory if they take no more than so many bytes.
    exclude: archives of which no patient may be among them. Nor may a patient of the test part of a split.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        memory: int = MEMORY,
        exclude: Sequence[str | os.PathLike] = (),
    ) -> None:
        if not paths:
            raise UserError("no archive to train on: give at least one --data")
        self.archives = [ArchiveReader(path) for path in paths]
        for other in self.archives[1:]:
            require_same_kind(self.archives[0], other)
        refuse_leaks(self.archives, exclude)
        refuse_twice(self.archives)
        self.schema, self.resolution = self.archives[0].schema, self.archives[0].resolution
        self._where = [(archive, i) for archive in self.archives for i in range(len(archive))]
        needed = len(self) * (self.schema.num_contrasts + 1) * self.resolution**2
        self._held = self._read_all() if needed <= memory else None

    def __len__(self) -> int:
        return len(self._where)

    @property
    def in_memory(self) -> bool:
        return self._held is not None

    def __getitem__(self, draw: Draw) -> Pair:
        contrasts, indices = self._held[draw.slice] if self._held else self._read(draw.slice)
        if draw.flip:  # geometry takes image and truth alike
            contrasts, indices = contrasts[..., ::-1], indices[..., ::-1]
        return Pair(torch.from_numpy(contrasts.copy()), torch.from_numpy(indices.copy()))

    def _read(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        archive, i = self._where[n]
        return self.schema.split(archive.read(i))

    def _read_all(self) -> list[tuple[np.ndarray, np.ndarray]]:
        numbers = tqdm(range(len(self)), desc="reading slices", unit="slice", disable=None, leave=False)
        # copies, so that the label maps, of which only the indices are needed, don't stay in memory with the contrasts
        return [(contrasts.copy(), indices) for contrasts, indices in map(self._read, numbers)]


class Draws:
    """Batches of draws: the union shuffled again and again, so every slice is used equally often; half are flipped.

    All of it follows from the seed, whatever the number of processes that read.
    """

    def __init__(self, slices: int, batch: int, steps: int, seed: int) -> None:
        self.slices, self.batch, self.steps, self.seed = slices, batch, steps, seed

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = np.random.default_rng(self.seed)
        waiting = np.empty(0, np.int64)
        for _ in range(self.steps):
            while len(waiting) < self.batch:
                waiting = np.concatenate([waiting, rng.permutation(self.slices)])
            now, waiting = waiting[: self.batch], waiting[self.batch :]
            flips = rng.random(self.batch) < 0.5
            yield [Draw(int(n), bool(flip)) for n, flip in zip(now, flips, strict=True)]


def loader(
    data: UnionOfArchives, draws: Draws, workers: int, pin: bool, log: Callable[[str], None] = tqdm.write
) -> Iterator[Pair]:
    """Batches of pairs, uint8 [N, C, H, W] and [N, H, W], in the order of the draws."""
    return minibatches(
        data,
        draws,
        0 if data.in_memory else workers,
        log,
        pin_memory=pin,
        generator=torch.Generator(),  # its own: the loader would otherwise draw from torch's global one
    )

"""Archives as a torch Dataset, for training the GAN."""

import os
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch

from dnnlib.errors import UserError
from dnnlib.text import count
from slices.archive.reader import ArchiveReader

MEMORY = 2 << 30  # bytes of slices that are kept in memory once they are read


class Example(NamedTuple):
    """One training example."""

    stored: torch.Tensor  # uint8 [C + K, H, W]
    label: torch.Tensor  # float32 [c_dim], one-hot; c_dim = 0 without --cond


class SliceDataset(torch.utils.data.Dataset):
    """Joint slices of an archive, optionally doubled by mirrored copies.

    subset: use this many slices, drawn at random with `seed`; None takes all.
    mirror: append every slice flipped left to right.
    use_labels: return the archive's class labels, for a conditional GAN.
    memory: keep what was read, if all of it takes no more than so many bytes; None takes MEMORY.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        subset: int | None = None,
        mirror: bool = False,
        use_labels: bool = False,
        seed: int = 0,
        memory: int | None = None,
    ) -> None:
        self.archive = ArchiveReader(path)
        self.schema, self.resolution = self.archive.schema, self.archive.resolution
        if use_labels and not self.archive.info.num_labels:
            raise UserError(
                f"{path} holds no class labels, which --cond needs: convert with --class-by grade, or leave out --cond"
            )
        self.c_dim = self.archive.info.num_labels if use_labels else 0

        chosen = np.arange(len(self.archive))
        if subset is not None:
            if not 1 <= subset <= len(chosen):
                raise UserError(
                    f"--subset {subset}: {path} holds {count(len(chosen), 'slice')}; choose from 1 to {len(chosen)}"
                )
            chosen = np.sort(np.random.RandomState(seed).permutation(chosen)[:subset])
        self.num_originals = len(chosen)  # come first; their mirrored copies follow
        flips = [False, True] if mirror else [False]
        self._items = [(int(i), flip) for flip in flips for i in chosen]

        size = self.num_originals * self.schema.num_channels * self.resolution**2
        self.in_memory = size <= (MEMORY if memory is None else memory)
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._items)

    @property
    def patients(self) -> tuple[str, ...]:
        """Whom a network learns from here: patients of the slices in use, and whom the generator of fakes saw."""
        info = self.archive.info
        return tuple(sorted({*(info.slices[i].patient for i, _ in self._items), *info.seen}))

    @property
    def label_counts(self) -> tuple[int, ...] | None:
        """How many slices each class has here, mirrored copies not counted; None without class labels."""
        if not self.c_dim:
            return None
        counts = Counter(self.archive.label(i) for i, _ in self._items[: self.num_originals])
        return tuple(counts[label] for label in range(self.c_dim))

    def __getitem__(self, n: int) -> Example:
        i, flip = self._items[n]
        stored = self._read(i)
        if flip:
            stored = stored[:, :, ::-1]
        return Example(torch.from_numpy(stored.copy()), self.label(n))

    def _read(self, i: int) -> np.ndarray:
        if i in self._kept:
            return self._kept[i]
        stored = self.archive.read_checked(i)
        if self.in_memory:
            self._kept[i] = stored
        return stored

    def label(self, n: int) -> torch.Tensor:
        """One-hot class label of example n, [c_dim], without reading the slice."""
        label = torch.zeros(self.c_dim)
        if self.c_dim:
            label[self.archive.label(self._items[n][0])] = 1
        return label

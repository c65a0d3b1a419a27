"""Slices of archives, kept in memory if they fit, and a torch data set of them for the GAN.

The U-Net's data set is in segmentation/data.py.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from dnnlib.errors import UserError
from dnnlib.text import count
from slices.archive.reader import ArchiveReader
from slices.shared_slices import SharedSlices

MEMORY = 2 << 30  # bytes that the slices of one data set may take in memory

Kept = TypeVar("Kept")


class Keeper(Protocol[Kept]):
    """Where slices are kept, by number: a dictionary, or SharedSlices."""

    def get(self, n: int, /) -> Kept | None: ...
    def __setitem__(self, n: int, kept: Kept, /) -> None: ...


class StoredSlices(Generic[Kept]):
    """Slices of one or several archives, by number. Each is checked when it is read.

    If all slices fit in memory, each is read once and kept. Otherwise a slice is read whenever it is asked for.
    """

    def __init__(
        self,
        places: Sequence[tuple[ArchiveReader, int]],  # of each slice: its archive, and its number there
        keep: Callable[[np.ndarray], Kept],  # stored slice, uint8 [C + K, H, W], read-only -> what to keep
        slice_bytes: int,  # memory that `keep` needs for one slice
        memory: int | None = None,  # bytes that all slices may take; None: MEMORY
    ) -> None:
        self._places, self._keep = places, keep
        self._bytes = len(places) * slice_bytes
        self._kept: Keeper[Kept] = {}
        self.limit(MEMORY if memory is None else memory)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, n: int) -> Kept:
        kept = self._kept.get(n)
        if kept is None:
            archive, i = self._places[n]
            kept = self._keep(archive.read_checked(i))
            if self.in_memory:
                self._kept[n] = kept
        return kept

    def __getstate__(self) -> dict[str, Any]:
        # A copy for another process reads slices itself, if it needs any.
        return {**self.__dict__, "_kept": {}}

    def limit(self, memory: int) -> None:
        """Set the number of bytes that all slices may take in memory."""
        self.in_memory = self._bytes <= memory

    def keep_in(self, keeper: Keeper[Kept]) -> None:
        """Keep slices there from now on."""
        self._kept = keeper


class Example(NamedTuple):
    """One training example of the GAN."""

    stored: torch.Tensor  # uint8 [C + K, H, W]
    label: torch.Tensor  # float32 [c_dim], one-hot; c_dim = 0 without --cond


class SliceDataset(torch.utils.data.Dataset[Example]):
    """Joint slices of an archive, optionally followed by their mirrored copies."""

    def __init__(
        self,
        path: str | os.PathLike,
        subset: int | None = None,  # use this many slices, drawn with `seed`; None: all
        mirror: bool = False,  # append every slice flipped left to right
        use_labels: bool = False,  # give the archive's class labels, for a conditional GAN
        seed: int = 0,
        memory: int | None = None,  # bytes that the slices may take in memory; None: MEMORY
    ) -> None:
        self.archive = ArchiveReader(path)
        self.schema, self.resolution = self.archive.schema, self.archive.resolution
        if use_labels and not self.archive.info.num_labels:
            raise UserError(
                f"{path} holds no class labels, which --cond needs: convert with --class-by grade, or leave out --cond"
            )
        self.c_dim = self.archive.info.num_labels if use_labels else 0
        self.chosen = _choose(self.archive, subset, seed)  # their numbers in the archive, ascending
        self.num_originals = len(self.chosen)  # come first; their mirrored copies follow
        flips = (False, True) if mirror else (False,)
        # (position in `chosen`, whether to flip) of every example: all originals first, then all copies.
        self._items = [(k, flip) for flip in flips for k in range(self.num_originals)]
        self._slices = StoredSlices(
            [(self.archive, i) for i in self.chosen],
            keep=_whole,
            slice_bytes=self.schema.num_channels * self.resolution**2,
            memory=memory,
        )

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, n: int) -> Example:
        k, flip = self._items[n]
        stored = self._slices[k]
        if flip:
            stored = stored[:, :, ::-1]  # along W: left to right
        # A copy, because torch refuses negative strides and warns of read-only arrays.
        return Example(torch.from_numpy(stored.copy()), self.label(n))

    def label(self, n: int) -> torch.Tensor:
        """One-hot class label of example n, float32 [c_dim], without reading the slice."""
        label = torch.zeros(self.c_dim)
        if self.c_dim:
            # Example n -> position in `chosen` -> number in the archive -> class.
            label[self._class_of(self.chosen[self._items[n][0]])] = 1
        return label

    @property
    def in_memory(self) -> bool:
        """Whether slices are kept in memory once they are read."""
        return self._slices.in_memory

    def share(self, path: Path, create: bool) -> None:
        """Keep slices in a file, together with other processes of this machine that call this with the same path.

        create: make the file. Exactly one process does, before the others call. Once all have called, the file's name
        can be removed: the file disappears with the last of them. Raises OSError if there is no room for it.
        """
        shape = (self.schema.num_channels, self.resolution, self.resolution)
        self._slices.keep_in(SharedSlices(path, self.num_originals, shape, create))

    def limit_memory(self, memory: int) -> None:
        """Set the number of bytes that the slices may take in memory."""
        self._slices.limit(memory)

    @property
    def patients(self) -> tuple[str, ...]:
        """Patients that a network knows after training on this, by slices in use or through a generator, sorted."""
        info = self.archive.info
        return tuple(sorted({*(info.slices[i].patient for i in self.chosen), *info.seen}))

    @property
    def label_counts(self) -> tuple[int, ...] | None:
        """Number of slices with each class label, without mirrored copies; None without class labels."""
        if not self.c_dim:
            return None
        counts = Counter(self._class_of(i) for i in self.chosen)
        return tuple(counts[label] for label in range(self.c_dim))

    def _class_of(self, i: int) -> int:
        """Class label of the archive's slice i."""
        label = self.archive.label(i)
        assert label is not None, "the reader refuses archives that label some slices only"
        return label


def _choose(archive: ArchiveReader, subset: int | None, seed: int) -> list[int]:
    """Numbers of the slices to use, ascending. Raises UserError if there are fewer than `subset`."""
    total = len(archive)
    if subset is None:
        return list(range(total))
    if not 1 <= subset <= total:
        raise UserError(f"--subset {subset}: {archive.path} holds {count(total, 'slice')}; choose from 1 to {total}")
    return sorted(np.random.RandomState(seed).permutation(np.arange(total))[:subset].tolist())


def _whole(stored: np.ndarray) -> np.ndarray:
    """All channels, as the GAN learns them."""
    return stored

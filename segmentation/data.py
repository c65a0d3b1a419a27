"""Slices of one or several archives for a U-Net: contrasts as images, class indices as truth."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from segmentation.augment import Augmentation, unchanged
from segmentation.config import TrainUNetConfig
from segmentation.draws import Draw, Draws
from segmentation.selection import Selection, classes_of, lesions_in, refuse_share
from slices.dataset import StoredSlices
from slices.schema import OUTSIDE, Schema
from torch_utils.data_loading import minibatches


class Pair(NamedTuple):
    """Image and truth of one slice, or of a batch: then N comes first."""

    contrasts: torch.Tensor  # uint8 [C, H, W]
    indices: torch.Tensor  # uint8 [H, W], 0 for the background


class _Item(NamedTuple):
    """One slice to learn from."""

    stored: int  # its number among the stored slices
    turn: tuple[int, ...]  # axes along which it is turned over


class PairDataset(torch.utils.data.Dataset[Pair]):
    """Image and truth of the selected slices: selection after selection, turn after turn. Indexed by a Draw.

    All slices are read and checked when the data set is made. Raises UserError for label maps that aren't one-hot.
    """

    def __init__(
        self,
        selected: Sequence[Selection],  # of archives of one schema and resolution
        augment: Augmentation = unchanged,
        memory: int | None = None,  # bytes that the slices may take in memory; None: slices.dataset.MEMORY
    ) -> None:
        self.selected, self._augment = selected, augment
        first = selected[0].archive
        self.schema, self.resolution = first.schema, first.resolution
        places = [(one.archive, i) for one in selected for i in range(one.first)]
        self._slices = StoredSlices(
            places,
            keep=functools.partial(_split, self.schema),
            slice_bytes=(self.schema.num_contrasts + 1) * self.resolution**2,  # contrasts and class indices
            memory=memory,
        )
        self._items, before = [], 0
        for one in selected:
            self._items += [_Item(before + i, turn) for turn in one.turns for i in range(one.first)]
            before += one.first
        found = self._find_classes()
        self.has_lesion = lesions_in(selected, found)  # bool [number of slices]
        # Names of lesion classes that no slice has.
        self.absent = tuple(np.array(self.schema.class_names)[~np.concatenate(found).any(axis=0)].tolist())

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, draw: Draw) -> Pair:
        if draw.slice is None:
            return self._blank()
        item = self._items[draw.slice]
        contrasts, indices = (np.flip(one, item.turn) for one in self._slices[item.stored])
        contrasts, indices = self._augment(contrasts, indices, draw.number)
        # Copies, because torch refuses negative strides, and the data set keeps the originals.
        return Pair(torch.from_numpy(contrasts.copy()), torch.from_numpy(indices.copy()))

    @property
    def in_memory(self) -> bool:
        """Whether all slices are held in memory."""
        return self._slices.in_memory

    def draws(self, config: TrainUNetConfig) -> Draws:
        """The slices that a training draws. Raises UserError if a share of them is asked for, but there are none."""
        refuse_share(config.lesion_free, self.has_lesion, self.selected)
        return Draws(self.has_lesion, config)

    def _blank(self) -> Pair:
        """A slice of background only, like those above and below a head."""
        edges = (self.resolution, self.resolution)
        contrasts = torch.full((self.schema.num_contrasts, *edges), OUTSIDE, dtype=torch.uint8)
        return Pair(contrasts, torch.zeros(edges, dtype=torch.uint8))

    def _find_classes(self) -> list[np.ndarray]:
        """Which lesion classes each stored slice has, bool [its slices, classes] for every selection.

        Reads all, which also checks and may keep them.
        """
        slices = tqdm(range(len(self._slices)), desc="reading slices", unit="slice", disable=None, leave=False)
        found = np.array([classes_of(self._slices[n][1], self.schema) for n in slices])
        return np.split(found, np.cumsum([one.first for one in self.selected])[:-1])


def _split(schema: Schema, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stored joint slice [C + K, H, W] -> contrasts [C, H, W] and class indices [H, W]."""
    contrasts, indices = schema.split(stored)
    return contrasts.copy(), indices  # a copy, because a view would keep the label maps in memory too


def loader(
    data: PairDataset, draws: Draws, workers: int, pin: bool, log: Callable[[str], None] = tqdm.write
) -> Iterator[Pair]:
    """Batches of pairs, uint8 [N, C, H, W] and [N, H, W], in the order of the draws."""
    return minibatches(
        data,
        draws,
        0 if data.in_memory else workers,  # slices in memory need no processes to read them
        log,
        pin_memory=pin,
    )

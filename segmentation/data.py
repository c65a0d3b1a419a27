"""Slices of one or several archives for a U-Net: contrasts as images, class indices as truth."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from dnnlib.errors import UserError
from segmentation.config import TrainUNetConfig
from segmentation.draws import Draw, Draws
from slices.archive.compatible import refuse_twice, require_same_kind
from slices.archive.reader import ArchiveReader
from slices.dataset import StoredSlices
from slices.leaks import refuse_leaks
from slices.schema import OUTSIDE, Schema
from torch_utils.data_loading import minibatches


class Pair(NamedTuple):
    """Image and truth of one slice, or of a batch: then N comes first."""

    contrasts: torch.Tensor  # uint8 [C, H, W]
    indices: torch.Tensor  # uint8 [H, W], 0 for the background


class PairDataset(torch.utils.data.Dataset[Pair]):
    """Image and truth of every slice of some archives, one archive after the other. Indexed by a Draw.

    All slices are read and checked when the data set is made. Raises UserError for archives that differ in schema or
    resolution or that hold a slice twice, for label maps that aren't one-hot, and for patients that must not be learned
    from: those in `exclude` or in the test part of a split.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        exclude: Sequence[str | os.PathLike] = (),  # archives whose patients must not be in `paths`
        memory: int | None = None,  # bytes that the slices may take in memory; None: slices.dataset.MEMORY
    ) -> None:
        if not paths:
            raise UserError("no archive to train on: give at least one --data")
        self.archives = [ArchiveReader(path) for path in paths]
        for other in self.archives[1:]:
            require_same_kind(self.archives[0], other)
        refuse_leaks(self.archives, exclude)
        refuse_twice(self.archives)
        self.schema, self.resolution = self.archives[0].schema, self.archives[0].resolution
        self._slices = StoredSlices(
            # Every slice of the first archive, then of the second, and so on.
            [(archive, i) for archive in self.archives for i in range(len(archive))],
            keep=functools.partial(_split, self.schema),
            slice_bytes=(self.schema.num_contrasts + 1) * self.resolution**2,  # contrasts and class indices
            memory=memory,
        )
        self.has_lesion = self._find_lesions()  # bool [number of slices]

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, draw: Draw) -> Pair:
        if draw.slice is None:
            return self._blank()
        contrasts, indices = self._slices[draw.slice]
        if draw.flip:  # along W, image and truth alike
            contrasts, indices = contrasts[..., ::-1], indices[..., ::-1]
        # Copies, because torch refuses negative strides, and the data set keeps the originals.
        return Pair(torch.from_numpy(contrasts.copy()), torch.from_numpy(indices.copy()))

    @property
    def in_memory(self) -> bool:
        """Whether all slices are held in memory."""
        return self._slices.in_memory

    def draws(self, config: TrainUNetConfig) -> Draws:
        """The slices that a training draws. Raises UserError if a share of them is asked for, but there are none."""
        num_free = int((~self.has_lesion).sum())
        names = " + ".join(str(archive.path) for archive in self.archives)
        if config.lesion_free and not num_free:
            generated = all(archive.info.seen for archive in self.archives)
            raise UserError(
                f"{names}: all {len(self)} slices have a lesion, but --lesion-free {config.lesion_free:g} asks for "
                f"slices without: {'train their GAN longer, or on' if generated else 'make'} an archive with convert "
                "--lesion-free, or leave the option out"
            )
        if config.lesion_free is not None and num_free == len(self):
            raise UserError(f"{names}: none of the {len(self)} slices has a lesion, so there is nothing to learn")
        return Draws(self.has_lesion, config)

    def _blank(self) -> Pair:
        """A slice of background only, like those above and below a head."""
        edges = (self.resolution, self.resolution)
        contrasts = torch.full((self.schema.num_contrasts, *edges), OUTSIDE, dtype=torch.uint8)
        return Pair(contrasts, torch.zeros(edges, dtype=torch.uint8))

    def _find_lesions(self) -> np.ndarray:
        """Which slices have a lesion, bool [number of slices]. Reads all, which also checks and may keep them."""
        has_lesion = np.zeros(len(self), bool)
        for n in tqdm(range(len(self)), desc="reading slices", unit="slice", disable=None, leave=False):
            _, indices = self._slices[n]
            has_lesion[n] = indices.any()
        return has_lesion


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

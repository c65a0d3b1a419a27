"""Slices of one or several archives for a U-Net: contrasts in, class indices out."""

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
    """Image and truth. In a batch both have N in front."""

    contrasts: torch.Tensor  # uint8 [C, H, W]
    indices: torch.Tensor  # uint8 [H, W], 0 for the background


class PairDataset(torch.utils.data.Dataset[Pair]):
    """Image and truth of every slice of some archives, one archive after the other. Takes a Draw, gives a Pair.

    All slices are checked at once. Raises UserError for archives that differ in schema or resolution, that hold a slice
    twice or one whose label maps aren't one-hot, and for patients that must not be learned from: those of `exclude` and
    those of the test part of a split.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        exclude: Sequence[str | os.PathLike] = (),  # archives whose patients must not be among these
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
            [(archive, i) for archive in self.archives for i in range(len(archive))],
            keep=functools.partial(_split, self.schema),
            slice_bytes=(self.schema.num_contrasts + 1) * self.resolution**2,
            memory=memory,
        )
        self.has_lesion = self._find_lesions()  # bool, of every slice

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, draw: Draw) -> Pair:
        if draw.slice is None:
            return self._blank()
        contrasts, indices = self._slices[draw.slice]
        if draw.flip:  # geometry takes image and truth alike
            contrasts, indices = contrasts[..., ::-1], indices[..., ::-1]
        return Pair(torch.from_numpy(contrasts.copy()), torch.from_numpy(indices.copy()))

    @property
    def in_memory(self) -> bool:
        """Whether all slices are held in memory."""
        return self._slices.in_memory

    def draws(self, config: TrainUNetConfig) -> Draws:
        """What a training draws. Raises UserError if it asks for a share of slices, and there are none of these."""
        num_free = int((~self.has_lesion).sum())
        names = " + ".join(str(archive.path) for archive in self.archives)
        if config.lesion_free and not num_free:
            generated = all(archive.info.seen for archive in self.archives)
            raise UserError(
                f"{names}: all {len(self)} slices have a lesion, but --lesion-free {config.lesion_free:g} asks for "
                f"others: {'train their GAN longer, or on an archive of' if generated else 'make the archive with'} "
                "convert --lesion-free, or leave it out here"
            )
        if config.lesion_free is not None and num_free == len(self):
            raise UserError(f"{names}: none of the {len(self)} slices has a lesion, so there is nothing to learn")
        return Draws(self.has_lesion, config)

    def _blank(self) -> Pair:
        """A slice of background, as those beyond the ends of a head."""
        edges = (self.resolution, self.resolution)
        contrasts = torch.full((self.schema.num_contrasts, *edges), OUTSIDE, dtype=torch.uint8)
        return Pair(contrasts, torch.zeros(edges, dtype=torch.uint8))

    def _find_lesions(self) -> np.ndarray:
        """Read all slices, which checks them and keeps them where memory allows: which of them have a lesion."""
        has_lesion = np.zeros(len(self), bool)
        for n in tqdm(range(len(self)), desc="reading slices", unit="slice", disable=None, leave=False):
            _, indices = self._slices[n]
            has_lesion[n] = indices.any()
        return has_lesion


def _split(schema: Schema, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stored joint slice -> contrasts and class indices."""
    contrasts, indices = schema.split(stored)
    return contrasts.copy(), indices  # contrasts are a view: kept as such, they would keep the label maps in memory too


def loader(
    data: PairDataset, draws: Draws, workers: int, pin: bool, log: Callable[[str], None] = tqdm.write
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

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
from dnnlib.text import count
from segmentation.config import TrainUNetConfig
from segmentation.draws import Draw, Drawn, Draws
from slices.archive.format import ArchiveInfo
from slices.archive.reader import ArchiveReader
from slices.archive.together import refuse_twice, require_same_kind
from slices.leaks import refuse_leaks
from slices.schema import OUTSIDE
from torch_utils.loading import minibatches

MEMORY = 2 << 30  # bytes of slices that are held in memory; more are read from the archives at every step
SAME_PIXEL = 0.01  # edges of pixels that differ by less than this share are taken as one


@dataclass(frozen=True)
class ArchiveFacts:
    """Which archive was used: file name, SHA-256, numbers of slices, patients and examinations, and its pixels' size.

    pixel: the least and the most mm that a pixel has, None if that is known of no slice; unmeasured: slices, as
    generated ones may be, of which it is unknown; remarks: what it lacks, as its conversion says.
    """

    file: str
    sha256: str
    slices: int
    patients: int
    examinations: int
    pixel: tuple[float, float] | None
    unmeasured: int
    remarks: tuple[str, ...] = ()


def describe(archive: ArchiveReader) -> ArchiveFacts:
    info = archive.info
    return ArchiveFacts(
        file=archive.path.name,
        sha256=sha256(archive.path),
        slices=len(archive),
        patients=len(info.patients),
        examinations=len(archive.by_examination()),
        pixel=info.pixels,
        unmeasured=0 if info.pixel else sum(record.volume is None for record in info.slices),
        remarks=tuple(_remarks(info)),
    )


def _remarks(info: ArchiveInfo) -> Iterator[str]:
    """What an archive lacks, by how it was made; other programs may have written anything there."""
    split, voxels = (info.made[key] if isinstance(info.made.get(key), dict) else {} for key in ("split", "voxels"))
    chosen = split.get(split["part"]) if isinstance(split.get("part"), str) else None
    wanted = {name for name in chosen if isinstance(name, str)} if isinstance(chosen, list) else set()
    if missing := wanted.difference(info.patients):
        yield f"{len(missing)} of the {len(wanted)} patients on this side of the split have no slice here"
    yield from (f"{what}: {count(n, 'voxel')}" for what, n in voxels.items() if type(n) is int and what.isprintable())


def pixels_of(archives: Sequence[ArchiveFacts]) -> tuple[float, float] | None:
    """The least and the most mm of all archives' pixels, as far as they are known."""
    known = [mm for archive in archives for mm in archive.pixel or ()]
    return (min(known), max(known)) if known else None


def is_one_size(pixel: tuple[float, float]) -> bool:
    """Whether the least and the most mm are hardly different."""
    return pixel[1] <= pixel[0] * (1 + SAME_PIXEL)


def is_known_size(pixel: tuple[float, float], learned: tuple[float, float]) -> bool:
    """Whether pixels are of the sizes that were learned from."""
    return pixel[0] >= learned[0] * (1 - SAME_PIXEL) and pixel[1] <= learned[1] * (1 + SAME_PIXEL)


def describe_pixels(pixel: tuple[float, float]) -> str:
    return f"{pixel[0]:.3g} mm" if is_one_size(pixel) else f"{pixel[0]:.3g} to {pixel[1]:.3g} mm"


class Pair(NamedTuple):
    """Image and truth. In a batch both have N in front."""

    contrasts: torch.Tensor  # uint8 [C, H, W]
    indices: torch.Tensor  # uint8 [H, W], 0 for the background


class UnionOfArchives(torch.utils.data.Dataset):
    """The slices of all archives, one after the other. All have one schema, one resolution, and one-hot maps.

    has_lesion: bool [N], of every slice.
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
        self.has_lesion = np.zeros(len(self), bool)
        self._held = self._read_all(hold=needed <= memory)

    def __len__(self) -> int:
        return len(self._where)

    @property
    def in_memory(self) -> bool:
        return self._held is not None

    def __getitem__(self, draw: Draw) -> Pair:
        if draw.slice is None:
            edges = (self.resolution, self.resolution)
            blank = torch.full((self.schema.num_contrasts, *edges), OUTSIDE, dtype=torch.uint8)
            return Pair(blank, torch.zeros(edges, dtype=torch.uint8))
        contrasts, indices = self._held[draw.slice] if self._held else self._read(draw.slice)
        if draw.flip:  # geometry takes image and truth alike
            contrasts, indices = contrasts[..., ::-1], indices[..., ::-1]
        return Pair(torch.from_numpy(contrasts.copy()), torch.from_numpy(indices.copy()))

    def draws(self, config: TrainUNetConfig) -> Draws:
        """What a training draws. Raises UserError if there are none of the slices of which it asks for a share."""
        lesion_free = np.flatnonzero(~self.has_lesion).tolist()
        names = " + ".join(str(archive.path) for archive in self.archives)
        if config.lesion_free and not lesion_free:
            generated = all(archive.info.seen for archive in self.archives)
            raise UserError(
                f"{names}: all {len(self)} slices have a lesion, but --lesion-free {config.lesion_free:g} asks for "
                f"others: {'train their GAN longer, or on an archive of' if generated else 'make the archive with'} "
                "convert --lesion-free, or leave it out here"
            )
        if config.lesion_free is not None and len(lesion_free) == len(self):
            raise UserError(f"{names}: none of the {len(self)} slices has a lesion, so there is nothing to learn")
        return Draws(len(self), config.batch, config.steps, config.seed, config.empty, config.lesion_free, lesion_free)

    def count(self, draws: Draws) -> Drawn:
        """How many slices of each sort are drawn."""
        with_lesion = draws.others.count(self.has_lesion, draws.filled - draws.free)
        return Drawn(with_lesion, draws.filled - with_lesion, draws.blanks)

    def _read(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        archive, i = self._where[n]
        return self.schema.split(archive.read_checked(i))

    def _read_all(self, hold: bool) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """Check all slices, and note which have a lesion."""
        held = []
        for n in tqdm(range(len(self)), desc="reading slices", unit="slice", disable=None, leave=False):
            contrasts, indices = self._read(n)
            self.has_lesion[n] = indices.any()
            if hold:  # a copy, so that the label maps, of which only the indices are needed, don't stay in memory too
                held.append((contrasts.copy(), indices))
        return held if hold else None


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

"""Unselected fakes beside unselected real slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segmentation.page.pictures import LOSSLESS_UP_TO, strip_uri
from slices.archive.reader import ArchiveReader

SHOWN = 12  # strips of each kind


@dataclass(frozen=True)
class Strip:
    """One slice: its contrasts, then its labels over one of them."""

    uri: str
    alt: str


@dataclass(frozen=True)
class Column:
    """Strips below each other."""

    title: str
    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class Samples:
    """Two columns: fakes and real slices."""

    columns: tuple[Column, Column]
    resolution: int
    width: int  # of a strip, in pixels
    caption: str


def make_samples(real: ArchiveReader, fake: ArchiveReader, room: int) -> Samples:
    """The first fakes and as many real slices at even distances, as many as take no more than `room` bytes."""
    most = min(SHOWN, len(fake), len(real))
    fakes = _strips(fake, range(most), "fake")
    reals = _strips(real, [round(float(i)) for i in np.linspace(0, len(real) - 1, most)], "real")
    size, shown = 0, 0
    for one, other in zip(fakes, reals, strict=True):
        size += len(one.uri) + len(other.uri)
        shown += size <= room
    order = ", ".join(real.schema.contrasts)
    name = real.schema.contrasts[real.schema.shown]
    caption = (
        f"Nothing was selected: the first {shown} fakes of the archive, and {shown} real training slices at even "
        f"distances through theirs. From left to right: {order}, and the labels over {name}."
        + ("" if real.resolution <= LOSSLESS_UP_TO else " Compressed with loss.")
    )
    columns = (Column("Fake", fakes[:shown]), Column("Real", reals[:shown]))
    return Samples(columns, real.resolution, real.resolution * (real.schema.num_contrasts + 1), caption)


def _strips(reader: ArchiveReader, numbers, kind: str) -> tuple[Strip, ...]:
    return tuple(_strip(reader, i, kind) for i in numbers)


def _strip(reader: ArchiveReader, i: int, kind: str) -> Strip:
    seed = reader.info.slices[i].seed
    told = f"{kind} slice" + (f", seed {seed}" if seed is not None else f", number {i + 1} of the archive")
    return Strip(strip_uri(reader.read(i), reader.schema), told)

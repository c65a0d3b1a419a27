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

    title: str  # of the experiment
    columns: tuple[Column, Column]
    resolution: int
    width: int  # of a strip, in pixels
    caption: str


def make_samples(title: str, real: ArchiveReader, fake: ArchiveReader, room: int) -> Samples:
    """The first fakes and as many real slices at even distances, as many as take about `room` bytes or less."""
    most = min(SHOWN, len(fake), len(real))
    fakes, reals = _fakes(fake, most), _reals(real, most)
    size = sum(len(strip.uri) for strip in (*fakes, *reals))
    shown = max(1, min(most, most * room // size))
    columns = (Column("Fake", fakes[:shown]), Column("Real", reals if shown == most else _reals(real, shown)))
    order = ", ".join(real.schema.contrasts)
    name = real.schema.contrasts[real.schema.shown]
    caption = (
        f"Nothing was selected: the first {shown} fakes of {fake.path.name}, and {shown} real training slices at even "
        f"distances through {real.path.name}. From left to right: {order}, and the labels over {name}."
        + ("" if real.resolution <= LOSSLESS_UP_TO else " Compressed with loss.")
    )
    return Samples(title, columns, real.resolution, real.resolution * (real.schema.num_contrasts + 1), caption)


def _fakes(reader: ArchiveReader, count: int) -> tuple[Strip, ...]:
    return tuple(_strip(reader, i, "fake") for i in range(count))


def _reals(reader: ArchiveReader, count: int) -> tuple[Strip, ...]:
    places = np.linspace(0, len(reader) - 1, count)
    return tuple(_strip(reader, round(float(i)), "real") for i in places)


def _strip(reader: ArchiveReader, i: int, kind: str) -> Strip:
    seed = reader.info.slices[i].seed
    told = f"{kind} slice" + (f", seed {seed}" if seed is not None else f", number {i + 1} of the archive")
    return Strip(strip_uri(reader.read(i), reader.schema), told)

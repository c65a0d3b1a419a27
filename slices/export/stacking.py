"""Which slices of an archive belong to which volume, and where they lie in it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from dnnlib.errors import UserError
from dnnlib.text import count
from slices.affine import has_axes
from slices.archive.format import Volume
from slices.archive.reader import ArchiveReader
from slices.geometry import VoxelGrid

LONGEST_AXIS = 32767  # voxels; what NIfTI-1 can say
MOST_VOXELS = 1 << 28  # of all contrasts of a volume; what fits into memory


@dataclass(frozen=True)
class Folder:
    """One folder of an export."""

    name: str
    num_slices: int  # that it got
    num_in_volume: int | None  # slices that the volume has; None for slices of no known volume
    grid: str | None  # whose voxels a NIfTI volume has, in words; None for pictures


@dataclass(frozen=True)
class VolumeSlices:
    """The slices of one volume."""

    name: str
    volume: Volume
    grid: VoxelGrid
    numbers: dict[int, int]  # index, from the feet upwards -> number in the archive

    @property
    def first(self) -> int:
        """The number of the lowest slice."""
        return next(iter(self.numbers.values()))


def slices_by_volume(reader: ArchiveReader) -> dict[str, VolumeSlices]:
    """Volume -> its slices; generated slices belong to none.

    Raises UserError if a slice has no place in its volume, or if a volume makes no sense.
    """
    found = {}
    for name, numbers in _numbers(reader).items():
        volume = reader.info.volumes[name]
        try:
            grid = _grid(volume, reader)
        except UserError as error:
            raise UserError(f"{reader.path}: the volume {name}: {error}") from None
        if wrong := [index for index in numbers if index >= grid.num_slices]:
            raise UserError(
                f"{reader.path}: slice {wrong[0]} of the volume {name}, which has the slices 0 to {grid.num_slices - 1}"
            )
        found[name] = VolumeSlices(name, volume, grid, dict(sorted(numbers.items())))
    return found


def _numbers(reader: ArchiveReader) -> dict[str, dict[int, int]]:
    """Volume -> index of a slice -> its number in the archive."""
    numbers: dict[str, dict[int, int]] = {}
    for i, record in enumerate(reader.info.slices):
        if (cut := record.cut) is None:
            continue
        places = numbers.setdefault(cut.volume, {})
        if cut.index is None or cut.index in places:
            what = "no index" if cut.index is None else f"the index {cut.index}, as another slice has"
            raise UserError(f"{reader.path}: {record.file} of the volume {cut.volume} has {what}")
        places[cut.index] = i
    return numbers


def _grid(volume: Volume, reader: ArchiveReader) -> VoxelGrid:
    """The grid to write a volume on. Raises UserError for one that an archive may describe but no file can have."""
    affine = np.array(volume.affine)
    if np.abs(affine).max() > np.finfo(np.float32).max or not has_axes(affine):
        raise UserError("its affine is not invertible, or too large for a file")
    if max(volume.shape) > LONGEST_AXIS:
        raise UserError(f"its shape is {list(volume.shape)}; expected at most {LONGEST_AXIS} voxels along each axis")
    grid = VoxelGrid.of(volume.shape, affine, reader.resolution, volume.pixel)
    num_contrasts = reader.schema.num_contrasts
    if math.prod((*grid.shape, num_contrasts)) > MOST_VOXELS:
        raise UserError(
            f"{count(num_contrasts, 'contrast')} of {'×'.join(map(str, grid.shape))} voxels are too many; "
            f"expected at most {MOST_VOXELS:,} in all"
        )
    return grid


def distinct(wanted: dict[int, str]) -> dict[int, str]:
    """Number of a slice -> its name; those that would share one get their numbers in the archive behind it."""
    times = Counter(wanted.values())
    return {i: name if times[name] == 1 else f"{name}-{i:08d}" for i, name in wanted.items()}

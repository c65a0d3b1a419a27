"""Volumes of an archive: which slices belong to each, and where they lie in it."""

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

LONGEST_AXIS = 32767  # voxels; NIfTI-1 stores shapes as int16
MOST_VOXELS = 1 << 28  # of all contrasts of a volume; they must fit into memory


@dataclass(frozen=True)
class Folder:
    """One folder of an export."""

    name: str
    num_slices: int  # slices written into it
    num_in_volume: int | None  # slices of the whole volume; None for slices of no known volume
    grid: str | None  # the grid of a NIfTI volume, in words; None for pictures


@dataclass(frozen=True)
class VolumeSlices:
    """The slices of one volume."""

    name: str
    volume: Volume
    grid: VoxelGrid
    numbers: dict[int, int]  # index in the volume, ascending from the feet -> number in the archive

    @property
    def first(self) -> int:
        """The number of the lowest slice."""
        return next(iter(self.numbers.values()))


def slices_by_volume(reader: ArchiveReader) -> dict[str, VolumeSlices]:
    """Name of a volume -> its slices. Generated slices belong to no volume.

    Raises UserError if a slice has no place in its volume, or if the description of a volume makes no sense.
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
    """The voxel grid for a volume's file. Raises UserError for a grid that a NIfTI file can't have."""
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
    """Number of a slice -> its name. To names that several slices would share, their numbers are appended."""
    times = Counter(wanted.values())
    return {i: name if times[name] == 1 else f"{name}-{i:08d}" for i, name in wanted.items()}

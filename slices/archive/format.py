"""Format of an archive: the content of dataset.json, and the bytes of a slice."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dnnlib import config
from slices.archive.zips import Packed, pack, unpack
from slices.pixels import PixelSize
from slices.schema import Schema

FORMAT, VERSION = "joint-slices", 2
INDEX = "dataset.json"
TRAIN, TEST = PARTS = ("train", "test")
LARGEST_RESOLUTION = 4096
LARGEST_LABEL = (1 << 16) - 1


@dataclass(frozen=True)
class Volume:
    """The volume that slices were cut from."""

    patient: str
    shape: tuple[int, int, int]  # voxels of the source volume
    affine: tuple[tuple[float, ...], ...]  # 4×4, mm
    pixel: float  # edge of the archive's square pixels, mm
    windows: dict[str, tuple[float, float]]  # contrast -> (low, high) intensities, stored as 1 and 255

    @property
    def slices(self) -> int | None:
        """Number of slices from the feet to the head; None if the affine doesn't tell."""
        from nibabel.orientations import io_orientation  # slow to import, and rarely needed to read archives

        with np.errstate(all="ignore"):
            axes = io_orientation(np.array(self.affine))[:, 0].tolist()  # of each voxel axis: 0 right, 1 front, 2 head
        return self.shape[axes.index(2)] if 2 in axes else None


@dataclass(frozen=True)
class Cut:
    """The place that a slice was cut from."""

    volume: str  # its name
    index: int | None  # of the slice, counted from the feet; None in archives of other programs that don't say it


@dataclass(frozen=True)
class Generated:
    """The origin of a generated slice."""

    seed: int
    snapshot: str | None  # SHA-256 of the generator's file; None in archives of other programs that don't say it


@dataclass(frozen=True)
class SliceRecord:
    """One slice in dataset.json: cut from a volume (see `cut`), generated (see `generated`), or of unknown origin."""

    file: str  # name of its member in the zip
    patient: str  # every generated slice counts as a patient of its own
    part: str | None = None  # TRAIN or TEST: the patient's part of the split; None without a split
    volume: str | None = None  # as in Cut
    index: int | None = None  # as in Cut
    seed: int | None = None  # as in Generated
    snapshot: str | None = None  # as in Generated

    @property
    def generated(self) -> Generated | None:
        """The origin of a generated slice; None for a slice that is real, as far as is known."""
        return None if self.seed is None else Generated(self.seed, self.snapshot)

    @property
    def cut(self) -> Cut | None:
        """The place that the slice was cut from; None if it was generated, or is of no known volume."""
        return None if self.volume is None or self.seed is not None else Cut(self.volume, self.index)


@dataclass(frozen=True)
class ArchiveInfo:
    """The content of dataset.json."""

    format: str
    version: int
    schema: Schema
    resolution: int
    slices: tuple[SliceRecord, ...]
    volumes: dict[str, Volume] = field(default_factory=dict)
    seen: tuple[str, ...] = ()  # for generated slices: the real patients that their generator learned from
    made: dict[str, Any] = field(default_factory=dict)  # history of the archive, see history.py
    labels: tuple[tuple[str, int], ...] | None = None  # (member, class label) of every slice
    label_names: tuple[str, ...] | None = None
    # For generated slices: the smallest and the largest pixel, in mm, that their generator learned from, if known.
    pixel: tuple[float, float] | None = config.optional(None)

    @property
    def pixels(self) -> PixelSize | None:
        """Range of the slices' pixel sizes; None if nothing is known."""
        return PixelSize.of([*(volume.pixel for volume in self.volumes.values()), *(self.pixel or ())])

    @property
    def patients(self) -> list[str]:
        """Names of the patients in the order of the slices."""
        return list(dict.fromkeys(record.patient for record in self.slices))

    @property
    def known_patients(self) -> frozenset[str]:
        """Patients that a network knows after training on these slices: their own, and those a generator saw."""
        return frozenset((*self.patients, *self.seen))

    @property
    def num_labels(self) -> int:
        """Number of classes for `--cond`, whether in these slices or not; 0 without class labels."""
        if self.labels is None:
            return 0
        return len(self.label_names) if self.label_names else 1 + max(label for _, label in self.labels)


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Header of a .npy file of uint8 in C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def pack_slice(stored: np.ndarray) -> Packed:
    """Pack one stored joint slice, uint8 [C + K, H, W], for `ArchiveWriter.add_packed`. Any process may do it."""
    assert stored.dtype == np.uint8, stored.dtype
    return pack(npy_header(stored.shape) + stored.tobytes())


def unpack_slice(member: Packed) -> np.ndarray:
    """The stored joint slice that `pack_slice` was given."""
    return np.load(io.BytesIO(unpack(member)), allow_pickle=False)

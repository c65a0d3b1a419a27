"""What an archive says of its slices: the content of dataset.json, and how a slice is packed."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dnnlib import config
from slices.archive.zips import Packed, pack
from slices.pixels import PixelSize
from slices.schema import Schema

FORMAT, VERSION = "joint-slices", 2
INDEX = "dataset.json"
TRAIN, TEST = PARTS = ("train", "test")
LARGEST_RESOLUTION = 4096
LARGEST_LABEL = (1 << 16) - 1


@dataclass(frozen=True)
class Volume:
    """Where slices came from."""

    patient: str
    shape: tuple[int, int, int]  # voxels of the source volume
    affine: tuple[tuple[float, ...], ...]  # 4×4, mm
    pixel: float  # edge of the archive's square pixels, mm
    windows: dict[str, tuple[float, float]]  # contrast -> (low, high) intensities, stored as 1 and 255

    @property
    def slices(self) -> int | None:
        """Number of slices from the feet to the head; None where the affine doesn't tell."""
        from nibabel.orientations import io_orientation  # what reads archives alone does without

        with np.errstate(all="ignore"):
            axes = io_orientation(np.array(self.affine))[:, 0].tolist()  # of the world: right, front, head
        return self.shape[axes.index(2)] if 2 in axes else None


@dataclass(frozen=True)
class Cut:
    """Where a slice was cut from."""

    volume: str
    index: int | None  # counted from the feet; None in archives of other programs that don't say it


@dataclass(frozen=True)
class Generated:
    """What made a slice."""

    seed: int
    snapshot: str | None  # SHA-256; None in archives of other programs that don't say it


@dataclass(frozen=True)
class SliceRecord:
    """One slice as dataset.json lists it. It was cut, or generated, or nothing is known of it."""

    file: str  # its member
    patient: str
    part: str | None = None  # TRAIN or TEST, where the split has put the patient; None where nothing was split
    volume: str | None = None
    index: int | None = None
    seed: int | None = None
    snapshot: str | None = None

    @property
    def generated(self) -> Generated | None:
        """What made the slice; None if it is real, as far as is known."""
        return None if self.seed is None else Generated(self.seed, self.snapshot)

    @property
    def cut(self) -> Cut | None:
        """Where the slice was cut from; None if it was generated, or is of no known volume."""
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
    made: dict[str, Any] = field(default_factory=dict)  # how the archive came to be
    labels: tuple[tuple[str, int], ...] | None = None  # (member, class label) of every slice
    label_names: tuple[str, ...] | None = None
    # Least and most mm that a pixel had in the slices that a generator learned from; None where nobody knows.
    pixel: tuple[float, float] | None = config.optional(None)

    @property
    def pixels(self) -> PixelSize | None:
        """The size of the slices' pixels, as far as it is known."""
        return PixelSize.of([*(volume.pixel for volume in self.volumes.values()), *(self.pixel or ())])

    @property
    def patients(self) -> list[str]:
        """Names of the patients in the order of the slices."""
        return list(dict.fromkeys(record.patient for record in self.slices))

    @property
    def known_patients(self) -> frozenset[str]:
        """Patients that a network knows after it learned from these slices: theirs, and those a generator saw."""
        return frozenset((*self.patients, *self.seen))

    @property
    def num_labels(self) -> int:
        """Number of classes that `--cond` conditions on, seen in these slices or not; 0 without class labels."""
        if self.labels is None:
            return 0
        return len(self.label_names) if self.label_names else 1 + max(label for _, label in self.labels)


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The first bytes of a .npy file of uint8 in C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def pack_slice(stored: np.ndarray) -> Packed:
    """Pack one stored joint slice, uint8 [C + K, H, W], for `ArchiveWriter.add_packed`, in any process."""
    assert stored.dtype == np.uint8, stored.dtype
    return pack(npy_header(stored.shape) + stored.tobytes())

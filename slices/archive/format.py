"""What an archive says of its slices: the content of dataset.json, and how a slice is packed."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dnnlib import config
from slices.archive.zips import Packed, pack
from slices.schema import Schema

FORMAT, VERSION = "joint-slices", 2
INDEX = "dataset.json"
TRAIN, TEST = PARTS = ("train", "test")
LARGEST_RESOLUTION = 4096
LARGEST_LABEL = (1 << 16) - 1


@dataclass(frozen=True)
class Volume:
    """Where slices came from: the source volume's grid, and the intensity window of each contrast.

    `affine` is 4×4 in mm; `pixel` is the edge of the archive's square pixels in mm; `windows` maps a contrast to the
    (low, high) intensities stored as 1 and 255.
    """

    patient: str
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    pixel: float
    windows: dict[str, tuple[float, float]]

    @property
    def slices(self) -> int | None:
        """How many slices it has from the feet to the head; None where its affine doesn't tell."""
        from nibabel.orientations import io_orientation  # what reads archives alone does without

        with np.errstate(all="ignore"):
            axes = io_orientation(np.array(self.affine))[:, 0].tolist()  # of the world: right, front, head
        return self.shape[axes.index(2)] if 2 in axes else None


@dataclass(frozen=True)
class SliceRecord:
    """One slice: its member, its patient, and either the volume and index it was cut from or the seed that made it.

    part: TRAIN or TEST, the side of the split that the patient is on; None where nothing was split.
    """

    file: str
    patient: str
    part: str | None = None
    volume: str | None = None
    index: int | None = None
    seed: int | None = None
    snapshot: str | None = None


@dataclass(frozen=True)
class ArchiveInfo:
    """The content of dataset.json.

    seen: for generated slices, the real patients whom their generator learned from.
    pixel: the least and the most mm that a pixel had in the slices that it learned from; None where nobody knows.
    """

    format: str
    version: int
    schema: Schema
    resolution: int
    slices: tuple[SliceRecord, ...]
    volumes: dict[str, Volume] = field(default_factory=dict)
    seen: tuple[str, ...] = ()
    made: dict[str, Any] = field(default_factory=dict)
    labels: tuple[tuple[str, int], ...] | None = None
    label_names: tuple[str, ...] | None = None
    pixel: tuple[float, float] | None = config.optional(None)

    @property
    def pixels(self) -> tuple[float, float] | None:
        """Least and most mm that a pixel has, of all slices of which that is known."""
        known = [*(volume.pixel for volume in self.volumes.values()), *(self.pixel or ())]
        return (min(known), max(known)) if known else None

    @property
    def patients(self) -> list[str]:
        """Names of the patients in the order of the slices."""
        return list(dict.fromkeys(record.patient for record in self.slices))

    @property
    def known_patients(self) -> frozenset[str]:
        """Whom a network knows that learned from these slices: their patients, and those whom their generator saw."""
        return frozenset((*self.patients, *self.seen))

    @property
    def num_labels(self) -> int:
        """How many classes `--cond` would condition on, seen in these slices or not; 0 without class labels."""
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

"""Facts about an archive that a U-Net and its results store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnnlib import config
from dnnlib.files import sha256
from slices.archive.describe import remarks_on
from slices.archive.history import Cutting, cutting_of
from slices.archive.reader import ArchiveReader
from slices.pixels import PixelSize


@dataclass(frozen=True)
class ArchiveFacts:
    """Identity and content of an archive."""

    file: str  # file name without its folder
    sha256: str
    slices: int  # number of slices
    patients: int  # number of patients
    examinations: int  # number of examinations
    pixel: tuple[float, float] | None  # smallest and largest pixel size in mm; None: unknown for all slices
    unmeasured: int  # slices with unknown pixel size, for example from a GAN
    remarks: tuple[str, ...] = ()  # patients and voxels that it lacks, by its own account
    cutting: Cutting | None = config.optional(None)  # how its slices were cut; None: unknown, or generated slices


def collect_facts(archive: ArchiveReader) -> ArchiveFacts:
    """Collect the facts of an archive."""
    info = archive.info
    return ArchiveFacts(
        file=archive.path.name,
        sha256=sha256(archive.path),
        slices=len(archive),
        patients=len(info.patients),
        examinations=len(archive.by_examination()),
        pixel=info.pixels,
        # A pixel size of the archive holds for all slices; otherwise only slices of a known volume have one.
        unmeasured=0 if info.pixel else sum(record.volume is None for record in info.slices),
        remarks=tuple(remarks_on(info)),
        cutting=cutting_of(info.made),
    )


def pixels_of(archives: Sequence[ArchiveFacts]) -> PixelSize | None:
    """Range of pixel sizes in several archives. None: no size is known."""
    return PixelSize.of(mm for archive in archives for mm in archive.pixel or ())

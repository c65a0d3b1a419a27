"""What a U-Net and its results remember of an archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnnlib.files import sha256
from slices.archive.describe import remarks_on
from slices.archive.reader import ArchiveReader
from slices.pixels import PixelSize


@dataclass(frozen=True)
class ArchiveFacts:
    """Which archive was used, and what is in it."""

    file: str  # its name, without the folder
    sha256: str
    slices: int
    patients: int
    examinations: int
    pixel: tuple[float, float] | None  # least and most mm that a pixel has; None: known of no slice
    unmeasured: int  # slices whose pixels have no known size, as those of a GAN may have
    remarks: tuple[str, ...] = ()  # what it lacks, as its conversion says


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
        unmeasured=0 if info.pixel else sum(record.volume is None for record in info.slices),
        remarks=tuple(remarks_on(info)),
    )


def pixels_of(archives: Sequence[ArchiveFacts]) -> PixelSize | None:
    """The pixels of all archives together, as far as their size is known."""
    return PixelSize.of(mm for archive in archives for mm in archive.pixel or ())

"""What a U-Net and its results remember of an archive, and the size of its pixels in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnnlib.files import sha256
from slices.archive.describe import remarks_on
from slices.archive.reader import ArchiveReader

SAME_PIXEL = 0.01  # edges of pixels that differ by less than this share are taken as one


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

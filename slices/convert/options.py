"""What `dataset_tool.py convert` can be told."""

from __future__ import annotations

from dataclasses import dataclass

from dnnlib.errors import UserError
from slices.archive.format import LARGEST_RESOLUTION
from slices.convert.head import parse_head
from slices.geometry import SMALLEST_RESOLUTION

CHOICES = ("tumor", "brain", "all")
ON_ERROR = ("fail", "skip")


@dataclass(frozen=True)
class ConvertOptions:
    """What `dataset_tool.py convert` can be told; the same for every number of workers.

    resolution: pixels along an edge, a power of two; fov: mm along an edge, None for the whole slice.
    head: what is head, as `--head` says; None: it is found.
    slices, test_slices: which slices of a patient are taken, one of CHOICES; 'tumor' takes those with at least
    `min_tumor_pixels` lesion pixels at the output's resolution. None: 'tumor', or 'brain' for data without labels, and
    'all' for testing.
    lesion_free: so large a share of the training slices is to have brain but no lesion, besides 'tumor'; None: none.
    grade: one of GRADES, or 'all'; class_by: 'grade' stores it as class label.
    The last four concern the split into train and test and stay None for a single archive.
    """

    resolution: int = 256
    fov: float | None = None
    head: str | None = None
    slices: str | None = None
    min_tumor_pixels: int = 1
    lesion_free: float | None = None
    grade: str = "all"
    class_by: str | None = None
    test_slices: str | None = None
    test_fraction: float | None = None
    split_seed: int | None = None
    split_file: str | None = None

    def __post_init__(self) -> None:
        if self.resolution < SMALLEST_RESOLUTION or self.resolution & (self.resolution - 1):
            lower = max(SMALLEST_RESOLUTION, 1 << (self.resolution.bit_length() - 1) if self.resolution > 0 else 0)
            raise UserError(
                f"--resolution {self.resolution}: expected a power of two from {SMALLEST_RESOLUTION} up, "
                f"such as {lower} or {2 * lower}"
            )
        if self.resolution > LARGEST_RESOLUTION:
            raise UserError(f"--resolution {self.resolution}: expected at most {LARGEST_RESOLUTION}")
        if self.fov is not None and not 0 < self.fov < float("inf"):
            raise UserError(f"--fov {self.fov:g}: expected a length in mm, such as 200")
        if self.head is not None:
            parse_head(self.head)
        if self.min_tumor_pixels < 1:
            raise UserError(f"--min-tumor-pixels {self.min_tumor_pixels}: expected 1 or more")
        if self.lesion_free is not None and not 0 < self.lesion_free < 1:
            raise UserError(f"--lesion-free {self.lesion_free:g}: expected a share between 0 and 1, such as 0.2")
        if self.test_fraction is not None and not 0 < self.test_fraction < 1:
            raise UserError(f"--test-fraction {self.test_fraction:g}: expected a share between 0 and 1, such as 0.1")

"""Options of `dataset_tool.py convert`: which slices become which archives, and how the work is done."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from dnnlib.cli import Checked, option
from dnnlib.errors import UserError
from dnnlib.processes import default_workers
from slices.archive.format import LARGEST_RESOLUTION
from slices.convert.head_mask import AUTO as AUTO_HEAD
from slices.convert.head_mask import HeadRule
from slices.convert.releases import GRADES
from slices.convert.source import ON_ERROR
from slices.geometry import SMALLEST_RESOLUTION
from slices.split import FRACTION_LIMITS, SPLIT_SEED, TEST_FRACTION

CHOICES = ("tumor", "brain", "all")
TEST_SLICES = "all"  # unless --test-slices is given


@dataclass(frozen=True)
class ConvertOptions(Checked):
    """Which slices become which archives, as the user asked. None: not given, so `plan` decides.

    An archive depends on these options, the source and the program, and on nothing else. The options from `test_slices`
    on are about the split, so they need a folder of archives.
    """

    resolution: int = option(
        "Pixels along an edge, a power of two. Smaller slices are padded, larger ones are averaged; none are enlarged.",
        default=256,
    )
    fov: float | None = option(
        "Edge of the square cut out of the middle, in mm.",
        default=None,
        shown="the whole slice",
        above=0,
        noun="a length in mm",
        example=200,
    )
    head: str | None = option(
        "What is head; the rest becomes background. auto: found in the images. all: every voxel. VALUE: voxels above "
        "it in any contrast. PATTERN: paths of masks, such as '{case}/{case}_brainmask.nii.gz'.",
        default=None,
        metavar="auto|all|VALUE|PATTERN",
        shown=AUTO_HEAD,
    )
    slices: str | None = option(
        "Slices to take: those with a lesion (tumor), those with brain, or all. With two archives: for train.zip.",
        default=None,
        choices=CHOICES,
        shown="tumor; brain without labels",
    )
    min_tumor_pixels: int = option(
        "Lesion pixels in the archive that a slice needs to count as one with a lesion.", default=1, least=1
    )
    lesion_free: float | None = option(
        "Add slices with brain and no lesion to those with a lesion, until they have this share of train.zip, or of "
        "the single archive; for example 0.2.",
        default=None,
        metavar="SHARE",
        shown="add none",
        above=0,
        below=1,
        noun="a share",
        example=0.2,
    )
    grade: str = option(
        "Patients to take: high-grade or low-grade glioma, or all.", default="all", choices=(*GRADES, "all")
    )
    class_by: str | None = option(
        "Store the grade as class label, for a conditional GAN.", default=None, choices=("grade",)
    )
    test_slices: str | None = option("--slices for test.zip.", default=None, choices=CHOICES, shown=TEST_SLICES)
    test_fraction: float | None = option(
        "Share of the patients in test.zip.", default=None, shown=str(TEST_FRACTION), **FRACTION_LIMITS
    )
    split_seed: int | None = option(
        "Seed of the split; another one gives another split.", default=None, shown=str(SPLIT_SEED)
    )
    split_file: Path | None = option('Split to use instead: {"train": [patients], "test": [patients]}.', default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        # The largest power of two that isn't larger than the resolution, to suggest.
        lower = 1 << max(self.resolution, SMALLEST_RESOLUTION).bit_length() - 1
        if self.resolution < SMALLEST_RESOLUTION or self.resolution != lower:
            raise UserError(
                f"--resolution {self.resolution}: expected a power of two from {SMALLEST_RESOLUTION} up, "
                f"such as {lower} or {2 * lower}"
            )
        if self.resolution > LARGEST_RESOLUTION:
            raise UserError(f"--resolution {self.resolution}: expected at most {LARGEST_RESOLUTION}")
        assert self.head_rule  # parsed now, so that a wrong --head is refused now

    @functools.cached_property
    def head_rule(self) -> HeadRule:
        """The parsed value of `head`."""
        return HeadRule.parse(AUTO_HEAD if self.head is None else self.head)


@dataclass(frozen=True)
class RunOptions(Checked):
    """How the work is done. The content of the archives doesn't depend on these options."""

    on_error: str = option(
        "What to do about a case that can't be read: fail, or skip it and report it.",
        default="fail",
        choices=ON_ERROR,
    )
    workers: int = option(
        "Processes; the result does not depend on it.",
        default=default_workers,
        shown="number of CPUs, at most 8",
        least=1,
    )
    force: bool = option("Replace what is there.", switch=True)

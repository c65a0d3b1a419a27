"""Options of a U-Net, its training and its test. This file imports no torch, so that --help answers at once."""

from __future__ import annotations

from dataclasses import dataclass

from dnnlib.cli import Checked, limited, option
from dnnlib.errors import UserError
from slices.schema import MOST_CLASSES, MOST_CONTRASTS

EVALUATED_AT_ONCE = 64  # slices
WIDEST = 4096  # channels at full size
MOST_STEPS, LARGEST_BATCH, MOST_WORKERS = 1 << 40, 1 << 20, 1 << 10
SMALLEST = 32  # pixels; after four halvings 2×2 are left, and instance normalization needs more than one


@dataclass(frozen=True)
class UNetConfig(Checked):
    """Constructor arguments of the network."""

    in_channels: int = limited(least=1, most=MOST_CONTRASTS)  # contrasts
    out_channels: int = limited(least=1, most=MOST_CLASSES + 1)  # lesion classes and background
    width: int = limited(least=1, most=WIDEST)  # channels at full size

    @property
    def features(self) -> tuple[int, int, int, int, int, int]:
        """Channels of the five levels and of the last layer; width 32 gives MONAI's default."""
        w = self.width
        return (w, w, 2 * w, 4 * w, 8 * w, w)


@dataclass(frozen=True)
class TrainUNetConfig(Checked):
    """How one U-Net is trained."""

    steps: int = option("Optimization steps; arms to be compared need the same number.", least=1, most=MOST_STEPS)
    batch: int = option("Slices per step.", default=32, least=1, most=LARGEST_BATCH)
    lr: float = option(
        "Learning rate of Adam at the first step; it falls to 0 along a cosine.",
        default=1e-3,
        above=0,
        example=0.001,
    )
    seed: int = option(
        "Seed of the initial weights, the order of the slices, and the flips.", default=0, least=0, most=2**32 - 1
    )
    width: int = option(
        "Channels at full resolution; the levels have 1, 1, 2, 4 and 8 times as many. A laptop needs a small width.",
        default=32,
        least=1,
        most=WIDEST,
    )
    workers: int = option(
        "Processes that read slices, if these don't fit in memory.", default=2, least=0, most=MOST_WORKERS
    )
    empty: float = option(
        "Share of drawn slices that are blank, like those above and below a head.",
        default=0.05,
        metavar="SHARE",
        least=0,
        below=1,
        noun="a share",
        example=0.05,
    )
    lesion_free: float | None = option(
        "Share of drawn slices of --data that have no lesion; the others have one.",
        default=None,
        metavar="SHARE",
        shown="as they come",
        least=0,
        below=1,
        noun="a share",
        example=0.2,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.empty + (self.lesion_free or 0) >= 1:
            raise UserError(
                f"--empty {self.empty:g} and --lesion-free {self.lesion_free:g} leave no slice with lesion: their sum "
                "must be below 1"
            )


@dataclass(frozen=True, kw_only=True)
class TrainPaths(Checked):
    """Files that a training reads and writes."""

    data: tuple[str, ...] = option(
        "Archive of slices, real or generated. May be repeated; all slices are then drawn with the same probability.",
        metavar="ZIP",
    )
    exclude: tuple[str, ...] = option(
        "Archive whose patients must not be behind --data, directly or through a GAN, such as test.zip. May be "
        "repeated.",
        default=(),
        metavar="ZIP",
    )
    outdir: str = option("Folder for unet.safetensors, training.json and log.txt.", metavar="DIR")
    force: bool = option("Replace an existing U-Net in --outdir.", switch=True)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Checked):
    """Files that a test reads and writes, and checks to skip."""

    model: str = option("A folder that `train` wrote, or a unet.safetensors.", metavar="PATH")
    data: str = option("Archive of the patients to test on.", metavar="ZIP")
    outdir: str = option("Folder for results.json and patients.png.", metavar="DIR")
    allow_overlap: bool = option(
        "Evaluate even if the U-Net knows patients of --data, from their slices or through a GAN; the results say so.",
        switch=True,
    )
    allow_other_pixels: bool = option(
        "Evaluate even if pixels of --data have another size than those the U-Net learned from; the results say so.",
        switch=True,
    )
    batch: int = option("Slices segmented at a time.", default=EVALUATED_AT_ONCE, least=1)
    force: bool = option("Replace existing results in --outdir.", switch=True)

"""Options of a U-Net, of its training and its test. No torch here: `--help` must answer at once."""

from __future__ import annotations

from dataclasses import dataclass

from dnnlib.cli import Checked, limited, option
from dnnlib.errors import UserError
from slices.schema import MOST_CLASSES, MOST_CONTRASTS

EVALUATED_AT_ONCE = 64  # slices
COMPARED = ("results.json", "results.md", "dice.png")  # files of a comparison of arms
WIDEST = 4096  # channels at full size
MOST_STEPS, LARGEST_BATCH, MOST_WORKERS = 1 << 40, 1 << 20, 1 << 10
SMALLEST = 32  # pixels; four halvings leave 2×2, the least that instance normalization can normalize


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

    steps: int = option("Optimization steps: the budget, the same for every arm.", least=1, most=MOST_STEPS)
    batch: int = option("Slices per step.", default=32, least=1, most=LARGEST_BATCH)
    lr: float = option(
        "Learning rate of Adam at the first step; a cosine takes it to 0 at the last.",
        default=1e-3,
        above=0,
        example=0.001,
    )
    seed: int = option(
        "Seed of the initial weights, the order of the slices, and the flips.", default=0, least=0, most=2**32 - 1
    )
    width: int = option(
        "Channels at full resolution; levels have this × (1, 1, 2, 4, 8). Small widths suit a laptop.",
        default=32,
        least=1,
        most=WIDEST,
    )
    workers: int = option(
        "Processes that read slices, where these don't fit in memory.", default=2, least=0, most=MOST_WORKERS
    )
    empty: float = option(
        "Share of the slices that are blank, as those beyond the ends of a head; the same in every arm.",
        default=0.05,
        metavar="SHARE",
        least=0,
        below=1,
        noun="a share",
        example=0.05,
    )
    lesion_free: float | None = option(
        "Share of the slices that have no lesion, of --data's own; the rest then has one.",
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
                f"--empty {self.empty:g} and --lesion-free {self.lesion_free:g} leave no slice with lesion: together "
                "they must be below 1"
            )


@dataclass(frozen=True, kw_only=True)
class TrainPaths(Checked):
    """What a training reads and writes."""

    data: tuple[str, ...] = option(
        "Archive of slices, real or generated. Repeat it to mix several: all slices of their union count alike.",
        metavar="ZIP",
    )
    exclude: tuple[str, ...] = option(
        "Archive whose patients must not be in --data, such as test.zip, neither themselves nor through a GAN. May be "
        "repeated.",
        default=(),
        metavar="ZIP",
    )
    outdir: str = option("Folder for unet.safetensors, training.json and log.txt.", metavar="DIR")
    force: bool = option("Replace a U-Net that is in --outdir already.", switch=True)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Checked):
    """What a test reads and writes, and what it lets pass."""

    model: str = option("A folder that `train` wrote, or a unet.safetensors.", metavar="PATH")
    data: str = option("Archive of the patients to test on.", metavar="ZIP")
    outdir: str = option("Folder for results.json and patients.png.", metavar="DIR")
    allow_overlap: bool = option(
        "Evaluate even if the U-Net knows patients of --data, from their slices or through a GAN; the results say so.",
        switch=True,
    )
    allow_other_pixels: bool = option(
        "Evaluate even if pixels of --data have other mm than those that the U-Net learned from; the results say so.",
        switch=True,
    )
    batch: int = option("Slices segmented at a time.", default=EVALUATED_AT_ONCE, least=1)
    force: bool = option("Replace the results that are in --outdir already.", switch=True)

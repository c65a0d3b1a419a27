"""Options of a U-Net, its training and its test. This file imports no torch, so that --help answers at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dnnlib.cli import Checked, limited, option
from dnnlib.errors import UserError
from segmentation.arms import AUGMENTATIONS, NONE, Arm, parse_arm
from slices.convert.source import ON_ERROR
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
class UNetRecipe(Checked):
    """How the U-Nets of an experiment are trained: what all its arms have in common."""

    steps: int = option("Optimization steps; arms to be compared need the same number.", least=1, most=MOST_STEPS)
    batch: int = option("Slices per step.", default=32, least=1, most=LARGEST_BATCH)
    lr: float = option(
        "Learning rate of Adam at the first step; it falls to 0 along a cosine.",
        default=1e-3,
        above=0,
        example=0.001,
    )
    width: int = option(
        "Channels at full resolution; the levels have 1, 1, 2, 4 and 8 times as many. A laptop needs a small width.",
        default=32,
        least=1,
        most=WIDEST,
    )
    workers: int = option(
        "Processes that read slices which don't fit in memory, and that augment them beside a GPU.",
        default=2,
        least=0,
        most=MOST_WORKERS,
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

    average: float = option(
        "Share of the steps, the last ones, whose weights are averaged in the saved U-Net; 0: the last weights alone.",
        default=0.25,
        metavar="SHARE",
        least=0,
        most=1,
        noun="a share",
        example=0.25,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.empty + (self.lesion_free or 0) >= 1:
            raise UserError(
                f"--empty {self.empty:g} and --lesion-free {self.lesion_free:g} leave no slice with lesion: their sum "
                "must be below 1"
            )


@dataclass(frozen=True)
class TrainUNetConfig(UNetRecipe):
    """How one U-Net is trained."""

    seed: int = option(
        "Seed of the initial weights, the order of the slices, and the augmentation.",
        default=0,
        least=0,
        most=2**32 - 1,
    )
    augment: str | None = option(
        "What happens to slices when they are drawn. flip: left to right, every other one; full: rotation, zoom, "
        "mirroring, noise, blur and contrast in the manner of nnU-Net.",
        default=None,
        choices=AUGMENTATIONS,
        shown="none, or what --arm says",
    )

    def augmented_for(self, arm: Arm | None) -> TrainUNetConfig:
        """The same, with `augment` decided: as the arm says. Raises UserError if --augment is given beside an arm."""
        if arm is not None and self.augment is not None:
            raise UserError(
                f"--augment {self.augment} and --arm {arm}: the notation of an arm says how it is augmented, such as "
                "R*flip or R*full; leave out --augment"
            )
        return replace(self, augment=arm.augment if arm else self.augment or NONE)


@dataclass(frozen=True, kw_only=True)
class TrainPaths(Checked):
    """Files that a training reads and writes."""

    data: tuple[str, ...] = option(
        "Archive of slices, real or generated. May be repeated; all slices are then drawn with the same probability.",
        default=(),
        metavar="ZIP",
    )
    arm: str | None = option(
        "Instead of --data: an arm of an experiment. R: the slices of --real; 3F: three times as many of --fake; 3A: "
        "R's flips left-right, up-down and both. Joined by +, then *flip or *full for the augmentation.",
        default=None,
        metavar="ARM",
    )
    real: str | None = option("Archive of real slices, R of --arm.", default=None, metavar="ZIP")
    fake: str | None = option(
        "Archive of generated slices, F of --arm; its first slices are taken.", default=None, metavar="ZIP"
    )
    val: str | None = option(
        "Archive of validation patients, in neither training nor test. Their Dice is drawn as a curve in "
        "training.json; nothing is selected by it.",
        default=None,
        metavar="ZIP",
    )
    exclude: tuple[str, ...] = option(
        "Archive whose patients must not be behind the slices, directly or through a GAN, such as test.zip. May be "
        "repeated.",
        default=(),
        metavar="ZIP",
    )
    outdir: str = option("Folder for unet.safetensors, training.json and log.txt.", metavar="DIR")
    force: bool = option("Replace an existing U-Net in --outdir.", switch=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        arm = self.chosen_arm
        if arm is None:
            if self.real is not None or self.fake is not None:
                raise UserError(
                    "--real and --fake belong to --arm, such as --arm=F+R; to learn from all slices of archives, give "
                    "them with --data"
                )
            if not self.data:
                raise UserError(
                    "no slices to learn from: give archives with --data, or an arm such as --arm=F+R with --real and "
                    "--fake"
                )
        elif self.data:
            raise UserError("--data and --arm are two ways to say what to learn from: give one of them")
        elif self.real is None:
            raise UserError(f"--arm {arm}: give R with --real; fakes are counted by it too, F means as many as R has")
        elif arm.uses_fakes and self.fake is None:
            raise UserError(f"--arm {arm}: give its fakes with --fake")

    @property
    def chosen_arm(self) -> Arm | None:
        """The arm; None: all slices of `archives`. Raises UserError for unknown notation."""
        return None if self.arm is None else parse_arm(self.arm)

    @property
    def archives(self) -> tuple[str, ...]:
        """Archives to learn from: those of --data, or R's, and that of the fakes if the arm uses fakes."""
        arm = self.chosen_arm
        if arm is None:
            return self.data
        assert self.real is not None
        return (self.real, self.fake) if arm.uses_fakes and self.fake is not None else (self.real,)


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


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Checked):
    """The U-Net and the masks of a prediction. What the source is, `SourceOptions` say."""

    model: Path = option("A folder that `train` wrote, or a unet.safetensors.", metavar="PATH")
    dest: Path = option("Folder for the masks, <case>.nii.gz.", metavar="DIR")
    fov: float | None = option(
        "Edge of the square that is segmented, in mm, in the middle of each slice.",
        default=None,
        shown="as in the U-Net's archives",
        above=0,
        noun="a length in mm",
        example=200,
    )
    head: str | None = option(
        "What is head, as for `dataset_tool.py convert`.",
        default=None,
        metavar="auto|all|VALUE|PATTERN",
        shown="as in the U-Net's archives",
    )
    batch: int = option("Slices segmented at a time.", default=EVALUATED_AT_ONCE, least=1)
    on_error: str = option(
        "What to do about a case that can't be read: fail, or skip it and report it.",
        default="fail",
        choices=ON_ERROR,
    )
    force: bool = option("Replace masks that are there.", switch=True)

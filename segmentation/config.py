"""Options of a U-Net and of its training, checked where they are made. No torch here: `--help` must answer at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dnnlib.errors import UserError
from slices.schema import MOST_CLASSES, MOST_CONTRASTS

EVALUATED_AT_ONCE = 64  # slices
WIDEST = 4096  # channels at full size
MOST_STEPS, LARGEST_BATCH, MOST_WORKERS = 1 << 40, 1 << 20, 1 << 10
SMALLEST = 32  # pixels; four halvings leave 2×2, the least that instance normalisation can normalise


@dataclass(frozen=True)
class UNetConfig:
    """Constructor arguments of the network: contrasts in, classes (background included) out, channels at full size."""

    in_channels: int
    out_channels: int
    width: int

    def __post_init__(self) -> None:
        for name, most in (("in_channels", MOST_CONTRASTS), ("out_channels", MOST_CLASSES + 1), ("width", WIDEST)):
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"{name} {getattr(self, name)}: expected a whole number from 1 to {most}")

    @property
    def features(self) -> tuple[int, int, int, int, int, int]:
        """Channels of the five levels and of the last layer; width 32 gives MONAI's default."""
        w = self.width
        return (w, w, 2 * w, 4 * w, 8 * w, w)


@dataclass(frozen=True)
class TrainUNetConfig:
    """How one U-Net is trained.

    steps: optimisation steps; the budget is the same for every arm of an experiment, however many slices it has.
    batch: slices per step.
    lr: learning rate of Adam at the first step; a cosine takes it to 0 at the last.
    seed: of the initial weights, the order of the slices, and the flips.
    width: channels at full resolution; the levels have width × (1, 1, 2, 4, 8).
    workers: processes that read slices when an archive is too large to be held in memory.
    empty: share of the drawn slices that are blank, as those beyond the ends of the head are: the same in every arm.
    lesion_free: share of them that have no lesion, of the archives' own; None: slices are drawn as they come.
    """

    steps: int
    batch: int = 32
    lr: float = 1e-3
    seed: int = 0
    width: int = 32
    workers: int = 2
    empty: float = 0.05
    lesion_free: float | None = None

    def __post_init__(self) -> None:
        bounds = {"steps": (1, MOST_STEPS), "batch": (1, LARGEST_BATCH), "seed": (0, 2**32 - 1), "width": (1, WIDEST)}
        for name, (least, most) in {**bounds, "workers": (0, MOST_WORKERS)}.items():
            if not least <= getattr(self, name) <= most:
                raise UserError(f"--{name} {getattr(self, name)}: expected a whole number from {least} to {most}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"--lr {self.lr:g}: expected a number above 0, for example 0.001")
        for name, share in (("--empty", self.empty), ("--lesion-free", self.lesion_free or 0)):
            if not 0 <= share < 1:
                raise UserError(f"{name} {share:g}: expected a share from 0 up to, but not, 1, such as 0.05")
        if self.empty + (self.lesion_free or 0) >= 1:
            raise UserError(
                f"--empty {self.empty:g} and --lesion-free {self.lesion_free:g} leave no slice with lesion: together "
                "they must be below 1"
            )

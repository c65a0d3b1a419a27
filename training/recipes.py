"""Recipes: hyperparameters of a training, as options and by name.

This file imports no torch, so that --help answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dnnlib.cli import Checked, option
from dnnlib.errors import UserError
from dnnlib.text import count
from training.division import nearest_batch

FP32, FP16, BF16 = PRECISIONS = ("fp32", "fp16", "bf16")
NOAUG, ADA, FIXED = AUGMENTATIONS = ("noaug", "ada", "fixed")
TARGET, ADA_KIMG, TRANSFER_ADA_KIMG = 0.6, 500, 100  # defaults of adaptive augmentation
# Features of a layer, number of layers, images. No real network comes near; a typing error or a forged file does.
WIDEST, DEEPEST, LARGEST_BATCH = 1 << 16, 100, 1 << 20


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """Hyperparameters of a training. `--cfg` chooses a recipe, and options replace single values.

    The named recipes are rows of StyleGAN2-ADA's table (Karras et al. 2020, table 6; `--cfg` of its code).
    """

    kimg: float = option("Length in thousands of real images shown.", above=0)
    batch: int = option("Images per optimization step.", least=1, most=LARGEST_BATCH)
    batch_gpu: int | None = option(
        "Images that a process computes at a time; fewer save memory.",
        default=None,
        shown="--batch / --gpus",
        least=1,
        most=LARGEST_BATCH,
    )
    gamma: float = option("Weight of R1 regularization; 0 turns it off.", least=0)
    lrate: float = option("Learning rate of both networks.", above=0, example=0.002)
    mixing: float = option("Probability of style mixing.", least=0, most=1)
    pl_weight: float = option("Weight of path length regularization; 0 turns it off.", least=0)
    map_depth: int = option("Layers of the mapping network.", least=1, most=DEEPEST)
    cbase: int = option("A layer has cbase / resolution feature maps, but at most --cmax.", least=1, most=1 << 30)
    cmax: int = option("Largest number of feature maps of a layer.", default=512, least=1, most=WIDEST)
    precision: str | None = option(
        "Type of the four highest resolutions: fp16 on a GPU, bf16 on a CPU too, or fp32 without a clamp.",
        default=None,
        choices=PRECISIONS,
        shown=FP16,
    )
    fp32: bool = option("The same as --precision=fp32.", default=False)
    z_dim: int = option("Size of the latent z.", default=512, least=1, most=WIDEST)
    w_dim: int | None = option("Size of the style w.", default=None, shown="--z-dim", least=1, most=WIDEST)
    aug: str = option(
        "Augment what the discriminator sees: ada adapts the probability to its overfitting, fixed keeps --p.",
        default=NOAUG,
        choices=AUGMENTATIONS,
    )
    p: float | None = option(
        "With --aug=fixed: probability of each augmentation.", default=None, least=0, most=1, shown="none"
    )
    target: float | None = option(
        "With --aug=ada: mean sign of the discriminator's logits at real slices that it aims at.",
        default=None,
        least=-1,
        most=1,
        shown=f"{TARGET}",
    )
    ada_kimg: float | None = option(
        "With --aug=ada: thousands of real images in which the probability could go from 0 to 1.",
        default=None,
        above=0,
        shown=f"{ADA_KIMG}, with --transfer {TRANSFER_ADA_KIMG}",
    )
    augpipe: str | None = option(
        "Augmentations: blit, geom, color, filter, noise, cutout, their unions bg, bgc, bgcf, bgcfn, bgcfnc, or a list "
        "of these and of single ones, such as blit,scale.",
        default=None,
        metavar="LIST",
        shown="bgc",
    )
    freezed: int = option(
        "First layers of the discriminator, from the image on, that keep their weights.",
        default=0,
        least=0,
        most=DEEPEST,
    )
    mbstd: int  # group size of the minibatch standard deviation; a smaller part of a minibatch is one group
    ema_kimg: float  # half-life of the generator's moving average, in thousands of images
    ema_ramp: float | None = None  # limits the half-life to this share of the images shown so far; None: no limit
    residual: bool = True  # whether the discriminator's blocks have skip connections

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fp32 and self.precision not in (None, FP32):
            raise UserError(f"--fp32=1 and --precision={self.precision} contradict each other: give one of them")
        told = {"--p": (self.p, FIXED), "--target": (self.target, ADA), "--ada-kimg": (self.ada_kimg, ADA)}
        for name, (value, aug) in told.items():
            if value is not None and self.aug != aug:
                raise UserError(f"{name} {value:g} belongs to --aug={aug}, but this is --aug={self.aug}")
        if self.aug == FIXED and self.p is None:
            raise UserError("--aug=fixed needs the probability of augmentations: --p=0.2, for example")
        if self.augpipe is not None and self.aug == NOAUG:
            raise UserError(f"--augpipe {self.augpipe} belongs to --aug=ada or --aug=fixed, but nothing is augmented")


_STYLEGAN2 = Recipe(
    kimg=25000,
    batch=32,
    gamma=10,
    lrate=0.002,
    mixing=0.9,
    pl_weight=2,
    map_depth=8,
    cbase=32768,
    mbstd=4,
    ema_kimg=10,
)
RECIPES: dict[str, Recipe] = {
    "stylegan2": _STYLEGAN2,
    "paper256": replace(_STYLEGAN2, batch=64, mbstd=8, lrate=0.0025, gamma=1, ema_kimg=20, cbase=16384),
    "paper512": replace(_STYLEGAN2, batch=64, mbstd=8, lrate=0.0025, gamma=0.5, ema_kimg=20),
    "paper1024": replace(_STYLEGAN2, gamma=2),
    "cifar": replace(
        _STYLEGAN2,
        kimg=100000,
        batch=64,
        mbstd=32,
        lrate=0.0025,
        gamma=0.01,
        ema_kimg=500,
        ema_ramp=0.05,
        map_depth=2,
        mixing=0,
        pl_weight=0,
        residual=False,
    ),
}
CFG_NAMES = ("auto", *RECIPES)


def auto_recipe(resolution: int, gpus: int = 1) -> Recipe:
    """Return the recipe that follows from the resolution and the number of processes."""
    batch = nearest_batch(_auto_batch(resolution, gpus), _STYLEGAN2.mbstd, gpus)
    return replace(
        _STYLEGAN2,
        batch=batch,
        cbase=32768 if resolution >= 512 else 16384,
        lrate=0.002 if resolution >= 1024 else 0.0025,
        gamma=0.0002 * resolution**2 / batch,  # the first guess that the StyleGAN2-ADA paper recommends
        ema_kimg=batch * 10 / 32,
        ema_ramp=0.05,
        map_depth=2,
    )


def _auto_batch(resolution: int, gpus: int) -> int:
    """Return the batch of the published formula, which need not divide over the processes."""
    # Large images come in small minibatches, to fit into memory, but every process has at least one.
    return max(min(gpus * min(4096 // resolution, 32), 64), gpus)


def find_recipe(cfg: str, resolution: int, gpus: int = 1) -> Recipe:
    """Return the recipe with this name, one of CFG_NAMES, with a batch that divides over the processes."""
    if cfg == "auto":
        return auto_recipe(resolution, gpus)
    recipe = RECIPES[cfg]
    return replace(recipe, batch=nearest_batch(recipe.batch, recipe.mbstd, gpus))


def notes(cfg: str, resolution: int, given: Mapping[str, Any], gpus: int = 1) -> list[str]:
    """Remarks for the user: values given by hand, and recipe values that were tuned for another batch."""
    recipe = find_recipe(cfg, resolution, gpus)
    told = [
        f"{name.replace('_', '-')} {value if isinstance(value, str) else f'{value:g}'}"
        for name, value in given.items()
        if value is not False
    ]
    lines = ["By hand: " + ", ".join(told)] if told else []
    wanted = _auto_batch(resolution, gpus) if cfg == "auto" else RECIPES[cfg].batch
    if "batch" not in given and recipe.batch != wanted:
        lines.append(f"batch {recipe.batch} instead of {wanted}, which does not divide over {gpus} processes")
    # The formula of `auto` starts from the batch that divides. The other recipes were tuned for the published one.
    tuned = recipe.batch if cfg == "auto" else wanted
    batch = given.get("batch", recipe.batch)
    if "batch" in given or batch != tuned:
        kept = {"gamma": ("gamma", recipe.gamma), "lrate": ("learning rate", recipe.lrate)}
        values = [value for name, value in kept.items() if name not in given] + [("EMA kimg", recipe.ema_kimg)]
        lines.append(
            f"`{cfg}` is tuned for a batch of {tuned}, and keeps its "
            + ", ".join(f"{name} {value:g}" for name, value in values)
        )
    compared = min(given.get("batch_gpu") or batch // gpus, batch)
    if compared < recipe.mbstd:
        lines.append(f"The minibatch standard deviation compares {count(compared, 'slice')}, not {recipe.mbstd}")
    return lines

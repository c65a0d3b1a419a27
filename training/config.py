"""Configuration of a training run, and the recipes that fill it in.

This file imports no torch, so that --help answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dnnlib.cli import Checked, like, limited, option
from dnnlib.config import optional
from dnnlib.errors import UserError
from dnnlib.text import count
from slices.archive.format import LARGEST_LABEL, LARGEST_RESOLUTION
from slices.schema import MOST_CLASSES, MOST_CONTRASTS, Schema
from training.augment.pipes import parse_pipe
from training.division import divide, nearest_batch

# The four highest resolutions compute in half precision. The clamp keeps activations within the range of float16.
NUM_FP16_RES, CONV_CLAMP = 4, 256
FP32, FP16, BF16 = PRECISIONS = ("fp32", "fp16", "bf16")
HALVES = {FP16: "float16", BF16: "bfloat16"}  # names of the types that a precision uses
NOAUG, ADA, FIXED = AUGMENTATIONS = ("noaug", "ada", "fixed")
TARGET, ADA_KIMG, TRANSFER_ADA_KIMG = 0.6, 500, 100  # defaults of adaptive augmentation
DEFAULT_PIPE = "bgc"
# Features of a layer, number of layers, images. No real network comes near; a typing error or a forged file does.
WIDEST, DEEPEST, LARGEST_BATCH = 1 << 16, 100, 1 << 20


# --- recipes ----------------------------------------------------------------------------------------------------------


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


# --- options of a run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataConfig(Checked):
    """The slices to train on."""

    path: str = option("Archive made by dataset_tool.py.", flag="--data", metavar="ZIP")
    mirror: bool = option("Double the data by left-right flips.", default=False)
    subset: int | None = option(
        "Train on N slices only, drawn with --seed.", default=None, metavar="N", shown="all slices", least=1
    )
    cond: bool = option("Condition on the archive's class labels.", default=False)
    workers: int = option("Processes that read data too large for memory.", default=2, least=0)


@dataclass(frozen=True, kw_only=True)
class FolderOptions(Checked):
    """Which run folder train.py works in."""

    outdir: str | None = option(
        "Begin in a new folder in this one, such as 00000-train-auto.", default=None, metavar="DIR"
    )
    run_dir: str | None = option(
        "Begin in this folder, or continue the run that is there; for commands that are started again.",
        default=None,
        metavar="DIR",
    )
    resume: str | None = option(
        "Continue the run in this folder with its own options, and with those given here.", default=None, metavar="DIR"
    )
    force: bool = option("Transfer although less than half of the weights fit.", switch=True)
    dry_run: bool = option("Print the resolved configuration and stop.", switch=True, short="-n")

    def __post_init__(self) -> None:
        super().__post_init__()
        places = {"--outdir": self.outdir, "--run-dir": self.run_dir, "--resume": self.resume}
        told = [name for name, value in places.items() if value is not None]
        if not told:
            raise UserError(
                "no folder is given: --outdir=DIR begins in a new one, --run-dir=DIR begins or continues in this one, "
                "--resume=DIR continues in this one"
            )
        if len(told) > 1:
            raise UserError(f"{' and '.join(told)} exclude each other: give one of them")


@dataclass(frozen=True, kw_only=True)
class RunOptions(Checked):
    """Options of train.py besides its folder, its data and its recipe."""

    exclude: tuple[str, ...] = option(
        "Archive whose patients must not be in --data, such as test.zip. May be repeated.", default=(), metavar="ZIP"
    )
    cfg: str = option("Recipe of hyperparameters; the paper used stylegan2.", default="auto", choices=CFG_NAMES)
    seed: int = option("Seed of weights, latents and data order.", default=0, least=0, most=2**32 - 1)
    snap: int = option(
        "Ticks of 4 kimg from one snapshot to the next; 0 saves one at the end only.", default=50, least=0
    )
    gpus: int = option(
        "Processes to train with, each on a GPU of its own if there are GPUs.", default=1, least=1, most=1024
    )
    tf32: bool = option("On a GPU, multiply float32 numbers faster, with factors rounded to 10 bits.", default=False)
    nobench: bool = option(
        "Take cuDNN's usual algorithms, without trying which are fastest; saves memory.", default=False
    )
    state_minutes: float = option(
        "Minutes from one saved state to the next; an interrupted run continues from the last one.",
        default=10,
        above=0,
    )
    max_bad_steps: int = option(
        "End after this many steps in a row with gradients that are not finite.", default=50, least=1
    )
    transfer: str | None = option(
        "Begin with the weights of this network: a snapshot, a run folder, or a published .pkl.",
        default=None,
        metavar="FILE|DIR",
        optional=True,
    )
    no_patients: bool = option(
        "State that the file of --transfer has learned from no patient, as a network of photographs. For files that do "
        "not say it themselves.",
        default=False,
        optional=True,
    )
    best: str | None = option(
        "Keep the snapshot with the smallest value of this measure; NAME:max keeps the largest. For programs that give "
        "a training measures; this one has none yet.",
        default=None,
        metavar="NAME",
    )


# --- configuration stored in a snapshot -------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneratorConfig(Checked):
    """Constructor arguments of a Generator. With num_maps 0 it is a plain StyleGAN2 of num_contrasts channels."""

    resolution: int = limited(least=4, most=LARGEST_RESOLUTION, noun="a power of two")
    num_contrasts: int = limited(least=1, most=MOST_CONTRASTS)
    num_maps: int = limited(least=0, most=MOST_CLASSES + 1)  # label maps, background included
    z_dim: int = like(Recipe, "z_dim", default=512)
    c_dim: int = limited(default=0, least=0, most=LARGEST_LABEL + 1)  # class labels; 0 is an unconditional network
    w_dim: int = like(Recipe, "w_dim", default=512)
    mapping_layers: int = like(Recipe, "map_depth", default=8)
    channel_base: int = like(Recipe, "cbase", default=32768)  # feature maps: channel_base / resolution …
    channel_max: int = like(Recipe, "cmax", default=512)  # … but at most channel_max
    num_fp16_res: int = limited(default=0, least=0, most=16)  # how many of the highest resolutions use half precision
    conv_clamp: float | None = limited(default=None, least=0, most=1 << 16)  # limit of |activation|; None: no limit
    half: str = limited(default=HALVES[FP16], choices=tuple(HALVES.values()), optional=True)  # float16: on GPUs only

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_resolution(self)


@dataclass(frozen=True)
class DiscriminatorConfig(Checked):
    """Constructor arguments of a Discriminator."""

    resolution: int = like(GeneratorConfig, "resolution")
    img_channels: int = limited(least=1, most=MOST_CONTRASTS + MOST_CLASSES + 1)  # contrasts and label maps
    c_dim: int = like(GeneratorConfig, "c_dim", default=0)
    channel_base: int = like(Recipe, "cbase", default=32768)
    channel_max: int = like(Recipe, "cmax", default=512)
    num_fp16_res: int = like(GeneratorConfig, "num_fp16_res", default=0)
    conv_clamp: float | None = like(GeneratorConfig, "conv_clamp", default=None)
    mbstd_group_size: int = limited(default=4, least=1, most=LARGEST_BATCH)  # slices compared with each other
    residual: bool = True  # False: no skip connections, as in the cifar recipe
    half: str = limited(default=HALVES[FP16], choices=tuple(HALVES.values()), optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_resolution(self)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, from the image on. The mapping of class labels is beside them."""
        resolutions = [self.resolution >> i for i in range(self.resolution.bit_length() - 3)]  # from its own down to 8
        of_block = ("conv0", "conv1", "skip") if self.residual else ("conv0", "conv1")
        return (
            *(f"b{resolution}.fromrgb" for resolution in resolutions[:1]),
            *(f"b{resolution}.{layer}" for resolution in resolutions for layer in of_block),
            *("b4.conv", "b4.fc", "b4.out"),
        )


def _check_resolution(config: GeneratorConfig | DiscriminatorConfig) -> None:
    """Raise UserError if the resolution is not a power of two, or a layer would have no channels."""
    resolution = config.resolution
    if resolution & (resolution - 1):  # more than one bit is set
        raise UserError(f"resolution {resolution}: expected a power of two from 4 to {LARGEST_RESOLUTION}")
    if config.channel_base < resolution:
        raise UserError(f"--cbase {config.channel_base} leaves no feature map at {resolution}×{resolution}")


@dataclass(frozen=True)
class LossConfig(Checked):
    """Weights of the loss and its regularization."""

    r1_gamma: float = like(Recipe, "gamma")  # weight γ of R1
    mixing: float = like(Recipe, "mixing", default=0.9)  # probability of style mixing
    pl_weight: float = like(Recipe, "pl_weight", default=2)  # of path length regularization; 0 turns it off
    pl_batch_shrink: int = 2  # path lengths are measured on 1 / pl_batch_shrink of the minibatch
    pl_decay: float = 0.01  # weight of a new value in the running mean of path lengths


@dataclass(frozen=True)
class AugmentConfig(Checked):
    """Augmentation of all images that the discriminator judges (Karras et al. 2020)."""

    pipe: tuple[str, ...] = limited(name="--augpipe")  # names of transformations
    p: float = limited(least=0, most=1, name="--p")  # probability; where it adapts, that of the first step
    target: float | None = like(Recipe, "target")  # of the mean sign of logits at reals; None: p stays as it is
    kimg: float = like(Recipe, "ada_kimg", default=ADA_KIMG)  # shown while p goes from 0 to 1
    interval: int = limited(default=4, least=1)  # steps from one move of p to the next


@dataclass(frozen=True)
class Transferred(Checked):
    """The weights with which a run began (--transfer)."""

    name: str  # of the file, without its folder
    sha256: str  # of the file
    kimg: float | None  # real images that its networks had been shown, in thousands; None: unknown
    share: float = limited(least=0, most=1)  # of the parameters of G and D that were copied


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """The complete configuration of a run. Lengths count images; a name with "kimg" counts thousands of images."""

    data: DataConfig
    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    loss: LossConfig
    kimg: float = like(Recipe, "kimg")
    batch: int = like(Recipe, "batch")  # images of one optimization step
    batch_gpu: int = like(Recipe, "batch_gpu")  # images of a part of the minibatch; the parts' gradients add up
    lrate: float = like(Recipe, "lrate")
    ema_kimg: float = limited(least=0)  # half-life of the generator's moving average …
    ema_ramp: float | None = limited(least=0)  # … which is at most this share of the images shown so far
    seed: int = like(RunOptions, "seed", default=0)
    snap: int = like(RunOptions, "snap", default=50)  # ticks between snapshots; 0 saves one at the end only
    kimg_per_tick: float = limited(default=4, above=0)
    pl_interval: int = 4  # steps from one path length regularization to the next
    r1_interval: int = 16  # steps from one R1 regularization to the next
    tf32: bool = like(
        RunOptions, "tf32", default=False
    )  # on a GPU, products of float32 matrices round their factors to 10 bits
    augment: AugmentConfig | None = optional(None)  # None: the discriminator sees images as they are
    freezed: int = limited(default=0, least=0, most=DEEPEST, name="--freezed", optional=True)  # layers of D
    transfer: Transferred | None = optional(None)  # None: the run began with random weights

    @property
    def parts(self) -> int:
        """Number of parts of a minibatch."""
        return self.batch // self.batch_gpu

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the discriminator's layers that keep their weights (Freeze-D, Mo et al. 2020)."""
        return self.discriminator.layers[: self.freezed]

    def __post_init__(self) -> None:
        super().__post_init__()
        divide(self.batch, self.batch_gpu, self.discriminator.mbstd_group_size, gpus=1)
        if self.freezed >= (layers := len(self.discriminator.layers)):
            raise UserError(
                f"--freezed {self.freezed}: this discriminator has {layers} layers, and one must learn: use --freezed "
                f"from 0 to {layers - 1}"
            )


def resolve(
    recipe: Recipe,
    data: DataConfig,
    schema: Schema,
    resolution: int,
    c_dim: int = 0,
    seed: int = 0,
    snap: int = 50,
    gpus: int = 1,
    tf32: bool = False,
    transfers: bool = False,
) -> TrainingConfig:
    """Return the configuration of a run with this recipe.

    gpus: number of processes; by default, each of them computes one part of a minibatch.
    transfers: the run starts from weights that exist.
    Raises UserError for a resolution that can't be trained, a minibatch that does not divide, and augmentations that
    don't fit the contrasts.
    """
    if resolution < 8 or resolution & (resolution - 1):  # more than one bit is set
        raise UserError(f"{data.path}: {resolution}×{resolution} pixels; the networks need a power of two from 8 up")
    batch_gpu, group = divide(recipe.batch, recipe.batch_gpu, recipe.mbstd, gpus)
    common: dict[str, Any] = {
        "resolution": resolution,
        "c_dim": c_dim,
        "channel_base": recipe.cbase,
        "channel_max": recipe.cmax,
        **_arguments_of_precision(recipe),
    }
    return TrainingConfig(
        data=data,
        generator=GeneratorConfig(
            num_contrasts=schema.num_contrasts,
            num_maps=schema.num_maps,
            z_dim=recipe.z_dim,
            w_dim=recipe.w_dim or recipe.z_dim,
            mapping_layers=recipe.map_depth,
            **common,
        ),
        discriminator=DiscriminatorConfig(
            img_channels=schema.num_channels,
            mbstd_group_size=group,
            residual=recipe.residual,
            **common,
        ),
        loss=LossConfig(r1_gamma=recipe.gamma, mixing=recipe.mixing, pl_weight=recipe.pl_weight),
        kimg=recipe.kimg,
        batch=recipe.batch,
        batch_gpu=batch_gpu,
        lrate=recipe.lrate,
        ema_kimg=recipe.ema_kimg,
        ema_ramp=None if transfers else recipe.ema_ramp,  # the ramp is there to forget random weights
        seed=seed,
        snap=snap,
        tf32=tf32,
        augment=_augmentation_of(recipe, schema.num_contrasts, transfers),
        freezed=recipe.freezed,
    )


def precision_of(config: GeneratorConfig | DiscriminatorConfig) -> str:
    """Return the precision of a network, one of PRECISIONS."""
    (precision,) = (precision for precision, half in HALVES.items() if half == config.half)
    return precision if config.num_fp16_res else FP32


def _arguments_of_precision(recipe: Recipe) -> dict[str, Any]:
    """Arguments of both networks that follow from the precision."""
    precision = FP32 if recipe.fp32 else recipe.precision or FP16
    if precision == FP32:
        return {"num_fp16_res": 0, "conv_clamp": None}
    return {"num_fp16_res": NUM_FP16_RES, "conv_clamp": CONV_CLAMP, "half": HALVES[precision]}


def _augmentation_of(recipe: Recipe, num_contrasts: int, transfers: bool) -> AugmentConfig | None:
    """Configuration of the augmentation. Raises UserError if none of it can be done to so many contrasts."""
    if recipe.aug == NOAUG:
        return None
    pipe = parse_pipe(recipe.augpipe or DEFAULT_PIPE, num_contrasts).names
    if recipe.aug == FIXED:
        assert recipe.p is not None
        return AugmentConfig(pipe, recipe.p, None)
    kimg = recipe.ada_kimg or (TRANSFER_ADA_KIMG if transfers else ADA_KIMG)
    return AugmentConfig(pipe, 0.0, TARGET if recipe.target is None else recipe.target, kimg)

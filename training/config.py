"""Configuration of a training run, as snapshots and run folders store it. This file imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dnnlib.cli import Checked, like, limited
from dnnlib.config import optional
from dnnlib.errors import UserError
from slices.archive.format import LARGEST_LABEL, LARGEST_RESOLUTION
from slices.schema import MOST_CLASSES, MOST_CONTRASTS, Schema
from training.augment.pipes import parse_pipe
from training.division import divide
from training.options import DataConfig, RunOptions
from training.recipes import (
    ADA_KIMG,
    BF16,
    DEEPEST,
    FIXED,
    FP16,
    FP32,
    LARGEST_BATCH,
    NOAUG,
    TARGET,
    TRANSFER_ADA_KIMG,
    Recipe,
)

# The four highest resolutions compute in half precision. The clamp keeps activations within the range of float16.
NUM_FP16_RES, CONV_CLAMP = 4, 256
HALVES = {FP16: "float16", BF16: "bfloat16"}  # names of the types that a precision uses
DEFAULT_PIPE = "bgc"


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
    pipe = parse_pipe(DEFAULT_PIPE if recipe.augpipe is None else recipe.augpipe, num_contrasts).names
    if recipe.aug == FIXED:
        assert recipe.p is not None
        return AugmentConfig(pipe, recipe.p, None)
    kimg = recipe.ada_kimg or (TRANSFER_ADA_KIMG if transfers else ADA_KIMG)
    return AugmentConfig(pipe, 0.0, TARGET if recipe.target is None else recipe.target, kimg)

"""What a training run is made of, and the presets that fill it in. No torch here: --help should not wait for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from dnnlib.errors import UserError
from dnnlib.text import count
from slices.archive.format import LARGEST_LABEL, LARGEST_RESOLUTION
from slices.schema import MOST_CLASSES, MOST_CONTRASTS, Schema

NUM_FP16_RES, CONV_CLAMP = 4, 256  # the four highest resolutions in half precision, on a GPU; its range needs a clamp
WIDEST, DEEPEST, LARGEST_BATCH = 1 << 16, 100, 1 << 20
_OPTIONS = {"mapping_layers": "--map-depth", "channel_base": "--cbase", "channel_max": "--cmax"}  # of other names


@dataclass(frozen=True)
class Preset:
    """One row of StyleGAN2-ADA's table of configurations (Karras et al. 2020, table 6, and its code's `--cfg`)."""

    kimg: int
    batch: int
    mbstd: int  # group of the minibatch standard deviation
    fmaps: float  # multiplier of the number of feature maps
    lrate: float
    gamma: float  # R1 weight
    ema_kimg: float
    ema_ramp: float | None
    map_depth: int
    mixing: float = 0.9
    pl_weight: float = 2
    residual: bool = True


PRESETS: dict[str, Preset] = {
    "stylegan2": Preset(25000, 32, 4, 1, 0.002, 10, 10, None, 8),
    "paper256": Preset(25000, 64, 8, 0.5, 0.0025, 1, 20, None, 8),
    "paper512": Preset(25000, 64, 8, 1, 0.0025, 0.5, 20, None, 8),
    "paper1024": Preset(25000, 32, 4, 1, 0.002, 2, 10, None, 8),
    "cifar": Preset(100000, 64, 32, 1, 0.0025, 0.01, 500, 0.05, 2, mixing=0, pl_weight=0, residual=False),
}
CFG_NAMES = ("auto", *PRESETS)


def auto_preset(resolution: int, gpus: int = 1) -> Preset:
    """The preset that follows from the resolution and the number of GPUs."""
    batch = max(min(gpus * min(4096 // resolution, 32), 64), gpus)
    return Preset(
        kimg=25000,
        batch=batch,
        mbstd=min(batch // gpus, 4),
        fmaps=1 if resolution >= 512 else 0.5,
        lrate=0.002 if resolution >= 1024 else 0.0025,
        gamma=0.0002 * resolution**2 / batch,
        ema_kimg=batch * 10 / 32,
        ema_ramp=0.05,
        map_depth=2,
    )


def find_preset(cfg: str, resolution: int) -> Preset:
    """The preset of one of CFG_NAMES."""
    return auto_preset(resolution) if cfg == "auto" else PRESETS[cfg]


@dataclass(frozen=True)
class DataConfig:
    """What to train on. subset None takes every slice; mirror adds flipped copies; cond uses the class labels."""

    path: str
    mirror: bool = False
    subset: int | None = None
    cond: bool = False
    workers: int = 2


def _require(config: Any, **bounds: tuple[float, float]) -> None:
    """Raise UserError for a field that is not None and out of its bounds: name=(least, most)."""
    for name, (least, most) in bounds.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
            raise UserError(f"{option} {value}: expected a number from {least} to {most}")


def _require_network(config: GeneratorConfig | DiscriminatorConfig) -> None:
    """What generator and discriminator have in common: a power of two of pixels, and channels at each resolution."""
    resolution = config.resolution
    if not 4 <= resolution <= LARGEST_RESOLUTION or resolution & (resolution - 1):
        raise UserError(f"resolution {resolution}: expected a power of two from 4 to {LARGEST_RESOLUTION}")
    bounds = {"channel_base": (1, 1 << 30), "channel_max": (1, WIDEST), "c_dim": (0, LARGEST_LABEL + 1)}
    _require(config, **bounds, num_fp16_res=(0, 16), conv_clamp=(0, 1 << 16))
    if config.channel_base < resolution:
        raise UserError(f"--cbase {config.channel_base} leaves no feature map at {resolution}×{resolution}")


@dataclass(frozen=True)
class GeneratorConfig:
    """Constructor arguments of a Generator. num_maps 0 is StyleGAN2's generator of num_contrasts channels."""

    resolution: int
    num_contrasts: int
    num_maps: int
    z_dim: int = 512
    c_dim: int = 0
    w_dim: int = 512
    mapping_layers: int = 8
    channel_base: int = 32768
    channel_max: int = 512
    num_fp16_res: int = 0
    conv_clamp: float | None = None

    def __post_init__(self) -> None:
        _require_network(self)
        _require(self, num_contrasts=(1, MOST_CONTRASTS), num_maps=(0, MOST_CLASSES + 1))
        _require(self, z_dim=(1, WIDEST), w_dim=(1, WIDEST), mapping_layers=(1, DEEPEST))


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Constructor arguments of a Discriminator. residual False is the plain stack that the cifar preset uses."""

    resolution: int
    img_channels: int
    c_dim: int = 0
    channel_base: int = 32768
    channel_max: int = 512
    num_fp16_res: int = 0
    conv_clamp: float | None = None
    mbstd_group_size: int = 4
    residual: bool = True

    def __post_init__(self) -> None:
        _require_network(self)
        _require(self, img_channels=(1, MOST_CONTRASTS + MOST_CLASSES + 1), mbstd_group_size=(1, LARGEST_BATCH))


@dataclass(frozen=True)
class LossConfig:
    """r1_gamma: weight γ of R1. mixing: probability of style mixing. pl_weight: of path length; 0 turns it off."""

    r1_gamma: float
    mixing: float = 0.9
    pl_weight: float = 2
    pl_batch_shrink: int = 2
    pl_decay: float = 0.01


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that a run depends on. Lengths are in images or, where so named, thousands of images (kimg)."""

    data: DataConfig
    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    loss: LossConfig
    kimg: float
    batch: int  # images of one optimisation step
    batch_gpu: int  # images at a time; gradients add up over batch / batch_gpu parts
    lrate: float
    ema_kimg: float
    ema_ramp: float | None
    seed: int = 0
    snap: int = 50  # ticks between snapshots; 0 saves one at the end only
    kimg_per_tick: float = 4
    pl_interval: int = 4
    r1_interval: int = 16

    def __post_init__(self) -> None:
        for name in ("batch", "batch_gpu", "lrate", "kimg", "kimg_per_tick"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected a finite number above 0")
        _require(self, batch=(1, LARGEST_BATCH), batch_gpu=(1, LARGEST_BATCH))
        for name in ("r1_gamma", "pl_weight"):
            if not 0 <= getattr(self.loss, name) < math.inf:
                raise UserError(f"--{name.removeprefix('r1_').replace('_', '-')}: expected a finite number from 0 up")
        if self.batch % self.batch_gpu:
            below = max(b for b in range(1, self.batch_gpu + 1) if self.batch % b == 0)
            raise UserError(
                f"--batch {self.batch} is not a multiple of --batch-gpu {self.batch_gpu}: use --batch-gpu {below}"
            )
        group = min(self.discriminator.mbstd_group_size, self.batch_gpu)
        if self.batch_gpu % group:
            nearest = max(self.batch_gpu // group * group, group)
            raise UserError(
                f"{self.batch_gpu} images at a time do not divide into groups of {group}, over which the discriminator "
                f"compares them: use a --batch or --batch-gpu of {nearest} or {nearest + group}"
            )


@dataclass(frozen=True)
class Overrides:
    """Values given by hand; None keeps the preset's."""

    kimg: float | None = None
    batch: int | None = None
    batch_gpu: int | None = None
    gamma: float | None = None
    lrate: float | None = None
    mixing: float | None = None
    pl_weight: float | None = None
    map_depth: int | None = None
    cbase: int | None = None
    cmax: int | None = None
    fp32: bool | None = None
    z_dim: int | None = None
    w_dim: int | None = None


def resolve(
    cfg: str,
    data: DataConfig,
    schema: Schema,
    resolution: int,
    c_dim: int,
    overrides: Overrides,
    seed: int,
    snap: int,
) -> TrainingConfig:
    """Fill in a preset with what was given by hand. Raises UserError for what can't be trained."""
    if resolution < 8 or resolution & (resolution - 1):
        raise UserError(f"{data.path}: {resolution}×{resolution} pixels; the networks need a power of two from 8 up")
    preset = find_preset(cfg, resolution)
    if overrides.batch is not None:  # a small minibatch can't hold a whole group; all else stays the preset's
        preset = replace(preset, mbstd=min(preset.mbstd, overrides.batch))
    given = {name: value for name, value in vars(overrides).items() if value is not None}
    batch = given.get("batch", preset.batch)
    channels = {
        "channel_base": given.get("cbase", int(preset.fmaps * 32768)),
        "channel_max": given.get("cmax", 512),
        "num_fp16_res": 0 if overrides.fp32 else NUM_FP16_RES,
        "conv_clamp": None if overrides.fp32 else CONV_CLAMP,
    }
    return TrainingConfig(
        data=data,
        generator=GeneratorConfig(
            resolution=resolution,
            num_contrasts=schema.num_contrasts,
            num_maps=schema.num_maps,
            z_dim=given.get("z_dim", 512),
            c_dim=c_dim,
            w_dim=given.get("w_dim", given.get("z_dim", 512)),
            mapping_layers=given.get("map_depth", preset.map_depth),
            **channels,
        ),
        discriminator=DiscriminatorConfig(
            resolution=resolution,
            img_channels=schema.num_channels,
            c_dim=c_dim,
            mbstd_group_size=preset.mbstd,
            residual=preset.residual,
            **channels,
        ),
        loss=LossConfig(
            r1_gamma=given.get("gamma", preset.gamma),
            mixing=given.get("mixing", preset.mixing),
            pl_weight=given.get("pl_weight", preset.pl_weight),
        ),
        kimg=given.get("kimg", preset.kimg),
        batch=batch,
        batch_gpu=given.get("batch_gpu", batch),
        lrate=given.get("lrate", preset.lrate),
        ema_kimg=preset.ema_kimg,
        ema_ramp=preset.ema_ramp,
        seed=seed,
        snap=snap,
    )


def notes(cfg: str, resolution: int, overrides: Overrides) -> list[str]:
    """What the user should know of how the preset and the values given by hand go together."""
    preset = find_preset(cfg, resolution)
    given = {name: value for name, value in vars(overrides).items() if value is not None and value is not False}
    if not given:
        return []
    lines = ["By hand: " + ", ".join(f"{name.replace('_', '-')} {value:g}" for name, value in given.items())]
    if overrides.batch is not None:
        kept = {"gamma": preset.gamma, "learning rate": preset.lrate, "EMA kimg": preset.ema_kimg}
        for name, value in (("gamma", overrides.gamma), ("learning rate", overrides.lrate)):
            if value is not None:
                del kept[name]
        lines.append(
            f"What `{cfg}` has for its own batch of {preset.batch} stays: "
            + ", ".join(f"{name} {value:g}" for name, value in kept.items())
        )
        if overrides.batch < preset.mbstd:
            compared = count(overrides.batch, "slice")
            lines.append(f"The minibatch standard deviation compares {compared}, not {preset.mbstd}")
    return lines

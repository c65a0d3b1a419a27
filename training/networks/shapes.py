"""Resolutions, channels and precision of blocks, the same in generator and discriminator."""

from __future__ import annotations

import math

import torch

from torch_utils.ops.reference import compute_type
from training.config import DiscriminatorConfig, GeneratorConfig


def resolutions_up_to(resolution: int) -> list[int]:
    """Powers of two from 4 to `resolution`."""
    assert resolution >= 4 and resolution & (resolution - 1) == 0, resolution
    return [2**i for i in range(2, int(math.log2(resolution)) + 1)]


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Number of feature maps at a resolution."""
    return min(channel_base // resolution, channel_max)


def runs_in_half(resolution: int, full_resolution: int, num_fp16_res: int) -> bool:
    """Return whether a block has one of the `num_fp16_res` highest resolutions, which use half precision."""
    return resolution > 4 and resolution * 2**num_fp16_res > full_resolution


def half_type(config: GeneratorConfig | DiscriminatorConfig, resolution: int) -> torch.dtype | None:
    """Type of 16 bits that the block of this resolution uses. None: it uses none."""
    in_half = runs_in_half(resolution, config.resolution, config.num_fp16_res)
    return getattr(torch, config.half) if in_half else None


def block_type(half: torch.dtype | None, parameter: torch.Tensor) -> torch.dtype:
    """Type in which a block computes, given one of its parameters. half: the type of 16 bits that it uses.

    float16 is used on a GPU only, bfloat16 everywhere; else it is the parameters' type. A float64 network is made for
    exact numbers, and computes in float64 everywhere.
    """
    dtype = compute_type(parameter)
    if half is None or dtype != torch.float32 or (half == torch.float16 and not parameter.is_cuda):
        return dtype
    return half

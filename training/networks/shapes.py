"""Resolutions, channels and precision of blocks, the same in generator and discriminator."""

from __future__ import annotations

import math

import torch

from torch_utils.ops.reference import compute_type


def resolutions_up_to(resolution: int) -> list[int]:
    """Powers of two from 4 to `resolution`."""
    assert resolution >= 4 and resolution & (resolution - 1) == 0, resolution
    return [2**i for i in range(2, int(math.log2(resolution)) + 1)]


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Number of feature maps at a resolution."""
    return min(channel_base // resolution, channel_max)


def runs_in_half(resolution: int, full_resolution: int, num_fp16_res: int) -> bool:
    """Return whether a block has one of the `num_fp16_res` highest resolutions. These use half precision on a GPU."""
    return resolution > 4 and resolution * 2**num_fp16_res > full_resolution


def block_type(use_fp16: bool, parameter: torch.Tensor) -> torch.dtype:
    """Type in which a block computes, given one of its parameters.

    float16 if the block uses it, on a GPU, where it is fast; else the parameters' type. A float64 network is made for
    exact numbers, and computes in float64 everywhere.
    """
    dtype = compute_type(parameter)
    return torch.float16 if use_fp16 and parameter.is_cuda and dtype == torch.float32 else dtype

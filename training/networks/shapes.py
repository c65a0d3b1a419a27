"""What the blocks of generator and discriminator have in common: resolutions, channels, precision."""

from __future__ import annotations

import math

import torch


def resolutions_up_to(resolution: int) -> list[int]:
    """[4, 8, …, resolution]."""
    assert resolution >= 4 and resolution & (resolution - 1) == 0, resolution
    return [2**i for i in range(2, int(math.log2(resolution)) + 1)]


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Number of feature maps at a resolution, in both networks."""
    return min(channel_base // resolution, channel_max)


def runs_in_half(resolution: int, full_resolution: int, num_fp16_res: int) -> bool:
    """Whether a block is one of the `num_fp16_res` highest resolutions, which run in half precision on a GPU."""
    return resolution > 4 and resolution * 2**num_fp16_res > full_resolution


def compute_dtype(use_fp16: bool, device: torch.device) -> torch.dtype:
    """Half precision only where it is fast: on a GPU."""
    return torch.float16 if use_fp16 and device.type == "cuda" else torch.float32

"""Discriminator: residual blocks, minibatch standard deviation, optional class projection."""

from __future__ import annotations

import math

import torch
from torch import nn

from torch_utils.ops.reference import compute_type
from torch_utils.ops.upfirdn2d import setup_filter
from training.config import DiscriminatorConfig
from training.networks.layers import LOWPASS, Conv2dLayer, FullyConnectedLayer, MappingNetwork
from training.networks.shapes import block_type, channels_at, half_type, resolutions_up_to


def minibatch_std(x: torch.Tensor, group_size: int, minibatches: int = 1) -> torch.Tensor:
    """Append a channel with the mean standard deviation over a group of samples (Karras et al. 2018, section 3).

    x: [N, C, H, W], made of `minibatches` minibatches of M samples each, one after the other. Returns [N, C + 1, H, W].
    A group lies within one minibatch, and its members are M / group_size apart. M must be a multiple of group_size, or
    smaller; then the minibatch is one group.
    """
    n, _, h, w = x.shape
    assert n % minibatches == 0, f"{n} samples are not {minibatches} minibatches"
    size = n // minibatches
    group_size = min(group_size, size)
    assert size % group_size == 0, f"a minibatch of {size} does not divide into groups of {group_size}"
    # [minibatches, members of a group, groups of each minibatch, C·H·W]
    groups = x.to(compute_type(x)).reshape(minibatches, group_size, size // group_size, -1)
    # Written out, as torch.var is slower on a CPU. [minibatches, groups of each, C·H·W]
    variance = (groups - groups.mean(dim=1, keepdim=True)).square().mean(dim=1)
    std = (variance + 1e-8).sqrt().mean(dim=2)  # [minibatches, groups of each]
    # Repeating the row of groups puts each group's value at all its members, in the order of x.
    std = std.repeat(1, group_size).reshape(n, 1, 1, 1).expand(n, 1, h, w)  # [N, 1, H, W]
    return torch.cat([x, std.to(x.dtype)], dim=1)  # [N, C + 1, H, W]


class DiscriminatorBlock(nn.Module):
    """Layers of one resolution: features [N, C, H, W] -> [N, C', H / 2, W / 2]. The first block takes the image."""

    def __init__(
        self,
        img_channels: int | None,
        in_channels: int,
        out_channels: int,
        residual: bool,
        half: torch.dtype | None,
        conv_clamp: float | None,
    ) -> None:
        super().__init__()
        self.residual, self.half_type = residual, half  # type of 16 bits, see `block_type`
        # No layer of this block uses it, but published checkpoints contain it under this name.
        self.register_buffer("resample_filter", setup_filter(LOWPASS))
        self.fromrgb = None
        if img_channels is not None:
            self.fromrgb = Conv2dLayer(img_channels, in_channels, 1, activation="lrelu", conv_clamp=conv_clamp)
        self.conv0 = Conv2dLayer(in_channels, in_channels, 3, activation="lrelu", conv_clamp=conv_clamp)
        self.conv1 = Conv2dLayer(in_channels, out_channels, 3, activation="lrelu", down=2, conv_clamp=conv_clamp)
        if residual:
            self.skip = Conv2dLayer(in_channels, out_channels, 1, bias=False, down=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(block_type(self.half_type, self.conv0.weight))
        if self.fromrgb is not None:
            x = self.fromrgb(x)  # [N, C + K, H, W] -> [N, C, H, W]
        if not self.residual:
            return self.conv1(self.conv0(x))
        # Two independent branches of unit variance, times √½ each, add up to unit variance.
        return self.skip(x, gain=math.sqrt(0.5)) + self.conv1(self.conv0(x), gain=math.sqrt(0.5))


class DiscriminatorEpilogue(nn.Module):
    """Last layers: features [N, C, 4, 4] and embedded class label [N, cmap_dim] -> logits [N, 1]."""

    def __init__(self, channels: int, cmap_dim: int, mbstd_group_size: int, conv_clamp: float | None) -> None:
        super().__init__()
        self.mbstd_group_size = mbstd_group_size
        self.cmap_dim = cmap_dim
        self.conv = Conv2dLayer(channels + 1, channels, 3, activation="lrelu", conv_clamp=conv_clamp)
        self.fc = FullyConnectedLayer(channels * 16, channels, activation="lrelu")
        self.out = FullyConnectedLayer(channels, cmap_dim or 1)

    def forward(self, x: torch.Tensor, cmap: torch.Tensor | None, minibatches: int = 1) -> torch.Tensor:
        x = self.conv(
            minibatch_std(x.to(compute_type(self.conv.weight)), self.mbstd_group_size, minibatches)
        )  # [N, C, 4, 4]
        x = self.out(self.fc(x.flatten(1)))  # [N, cmap_dim or 1]
        if cmap is not None:
            # Projection (Miyato & Koyama 2018): the logit is the inner product with the embedded class label.
            x = (x * cmap).sum(dim=1, keepdim=True) / math.sqrt(self.cmap_dim)  # [N, 1]
        return x


class Discriminator(nn.Module):
    """Joint slices [N, C + K, H, W] and class labels c [N, c_dim] -> logits [N, 1]. A large logit means "real"."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        # Backwards and without the first entry, which is 4: from the image's resolution down to 8.
        self.resolutions = resolutions_up_to(config.resolution)[:0:-1]

        def channels(resolution: int) -> int:
            return channels_at(resolution, config.channel_base, config.channel_max)

        for resolution in self.resolutions:
            block = DiscriminatorBlock(
                config.img_channels if resolution == config.resolution else None,
                channels(resolution),
                channels(resolution // 2),
                residual=config.residual,
                half=half_type(config, resolution),
                conv_clamp=config.conv_clamp,
            )
            setattr(self, f"b{resolution}", block)  # published checkpoints name the blocks b8, b16, …
        cmap_dim = channels(4) if config.c_dim else 0
        if config.c_dim:
            self.mapping = MappingNetwork(0, config.c_dim, cmap_dim, num_ws=None, track_average=False)
        self.b4 = DiscriminatorEpilogue(channels(4), cmap_dim, config.mbstd_group_size, config.conv_clamp)
        # Nearly twice as fast on a CPU. Activations take the layout of the weights.
        self.to(memory_format=torch.channels_last)

    def forward(self, img: torch.Tensor, c: torch.Tensor | None = None, minibatches: int = 1) -> torch.Tensor:
        """Judge img [N, C + K, H, W], made of `minibatches` minibatches of the same size, one after the other.

        Only samples of the same minibatch influence each other, through the minibatch standard deviation.
        """
        x = img.contiguous(memory_format=torch.channels_last)
        for resolution in self.resolutions:
            x = getattr(self, f"b{resolution}")(x)  # [N, C', H / 2, W / 2]
        return self.b4(x, self.mapping(None, c) if self.config.c_dim else None, minibatches)

"""The joint head, which turns the summed image output into contrasts and label maps."""

from __future__ import annotations

import torch
from torch import nn


class JointHead(nn.Module):
    """[N, C + K, H, W] -> the same shape: contrasts pass; label logits become probabilities, scaled to [−1, 1].

    The K logits go through a 1×1 convolution, which starts as the identity, and a softmax over K (the paper,
    "Methods"). 2p − 1 is the range of the stored one-hot maps, so the discriminator sees both in the same range.
    """

    def __init__(self, num_contrasts: int, num_maps: int) -> None:
        super().__init__()
        self.split = [num_contrasts, num_maps]
        self.label_conv = nn.Conv2d(num_maps, num_maps, kernel_size=1)
        assert self.label_conv.bias is not None
        nn.init.eye_(self.label_conv.weight[:, :, 0, 0].data)
        nn.init.zeros_(self.label_conv.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        contrasts, logits = x.split(self.split, dim=1)  # [N, C, H, W], [N, K, H, W]
        probabilities = self.label_conv(logits).softmax(dim=1)
        return torch.cat([contrasts, 2 * probabilities - 1], dim=1)  # [N, C + K, H, W]

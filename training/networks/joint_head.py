"""Joint head: turns the generator's image output into contrasts and label maps."""

from __future__ import annotations

import torch
from torch import nn


class JointHead(nn.Module):
    """[N, C + K, H, W] -> [N, C + K, H, W]: contrasts pass unchanged, label logits become probabilities.

    The K logits go through a 1×1 convolution and a softmax over K (the paper, "Methods"). The convolution starts as the
    identity. Probabilities p are scaled to 2p − 1, the range in which real one-hot maps come to the discriminator.
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
        probabilities = self.label_conv(logits).softmax(dim=1)  # [N, K, H, W], sum over K is 1
        return torch.cat([contrasts, 2 * probabilities - 1], dim=1)  # [N, C + K, H, W]

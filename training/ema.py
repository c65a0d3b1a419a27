"""Exponential moving average of the generator's weights. The averaged network is the one used after training."""

import torch
from torch import nn


def ema_beta(batch: int, ema_nimg: float, nimg: int, ramp: float | None) -> float:
    """Decay β = 0.5^(batch / half-life) of one step; the half-life is ema_nimg images.

    nimg: images shown so far. ramp: the half-life is at most this share of nimg; None keeps it constant.
    """
    if ramp is not None:
        # Without the ramp, random initial weights would stay in the average for a long time.
        ema_nimg = min(ema_nimg, nimg * ramp)
    return 0.5 ** (batch / max(ema_nimg, 1e-8))  # nimg is 0 at the first step


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, beta: float) -> None:
    """Set the parameters of `ema` to β · ema + (1 − β) · model. Buffers are copied, not averaged."""
    for average, parameter in zip(ema.parameters(), model.parameters(), strict=True):
        average.lerp_(parameter, 1 - beta)
    for copied, buffer in zip(ema.buffers(), model.buffers(), strict=True):
        copied.copy_(buffer)

"""The exponential moving average of the generator: the network that generates after training."""

import torch
from torch import nn


def ema_beta(batch: int, ema_nimg: float, nimg: int, ramp: float | None) -> float:
    """Decay of one step of `batch` images, for a half-life of ema_nimg images.

    ramp: the half-life is at most this share of the images shown so far, nimg; None: it is constant.
    """
    if ramp is not None:
        ema_nimg = min(ema_nimg, nimg * ramp)
    return 0.5 ** (batch / max(ema_nimg, 1e-8))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, beta: float) -> None:
    """Move the parameters of `ema` towards those of `model`; buffers are copied, not averaged."""
    for average, parameter in zip(ema.parameters(), model.parameters(), strict=True):
        average.lerp_(parameter, 1 - beta)
    for copied, buffer in zip(ema.buffers(), model.buffers(), strict=True):
        copied.copy_(buffer)

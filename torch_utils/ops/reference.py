"""Slow, readable, twice differentiable definitions of the operators, in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

SQRT2 = math.sqrt(2)


class Activation(NamedTuple):
    function: Callable[[torch.Tensor, float], torch.Tensor]
    alpha: float  # default slope parameter; only lrelu uses it
    gain: float  # default output gain, which keeps the second moment of a unit normal input


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda x, alpha: x, 0, 1),
    "relu": Activation(lambda x, alpha: F.relu(x), 0, SQRT2),
    "lrelu": Activation(lambda x, alpha: F.leaky_relu(x, alpha), 0.2, SQRT2),
    "tanh": Activation(lambda x, alpha: torch.tanh(x), 0, 1),
    "sigmoid": Activation(lambda x, alpha: torch.sigmoid(x), 0, 1),
    "elu": Activation(lambda x, alpha: F.elu(x), 0, 1),
    "selu": Activation(lambda x, alpha: F.selu(x), 0, 1),
    "softplus": Activation(lambda x, alpha: F.softplus(x), 0, 1),
    "swish": Activation(lambda x, alpha: x * torch.sigmoid(x), 0, SQRT2),
}


def bias_act(
    x: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None
) -> torch.Tensor:
    """y = clamp(act(x + b) · gain), with b along dimension `dim`, and clamped to ±`clamp` if that is given."""
    if b is not None:
        x = x + b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    x = ACTIVATIONS[act].function(x, alpha)
    if gain != 1:
        x = x * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return x


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip_filter: bool,
    gain: float,
) -> torch.Tensor:
    """Upsample by zeros, pad, convolve with a FIR filter, keep every down-th sample.

    x: [N, C, H, W]. f: [fh, fw], or [taps] for the outer product with itself, or None for no filter.
    up, down: (x, y). padding: (x before, x after, y before, y after) of the upsampled image; negative crops.
    flip_filter: correlate instead of convolving. Returns [N, C, H', W'] with H' = (H·up + padding − fh) // down + 1.
    """
    if f is None:
        f = x.new_ones([1, 1], dtype=torch.float32)
    channels = x.shape[1]
    x = _insert_zeros(x, *up)
    x0, x1, y0, y1 = padding
    own = (y0, x0) if f.ndim == 2 and x0 == x1 >= 0 and y0 == y1 >= 0 else (0, 0)  # the convolution pads without a copy
    if any(padding) and not any(own):
        x = F.pad(x, padding)
    f = (f * gain ** (f.ndim / 2)).to(x.dtype)
    if not flip_filter:
        f = f.flip(list(range(f.ndim)))
    if f.ndim == 2:
        return F.conv2d(x, f.expand(channels, 1, -1, -1), groups=channels, stride=down[::-1], padding=own)
    x = F.conv2d(x, f.reshape(1, -1).expand(channels, 1, 1, -1), groups=channels, stride=(1, down[0]))
    return F.conv2d(x, f.reshape(-1, 1).expand(channels, 1, -1, 1), groups=channels, stride=(down[1], 1))


def _insert_zeros(x: torch.Tensor, up_x: int, up_y: int) -> torch.Tensor:
    """Follow every sample by up − 1 zeros, along both axes."""
    if up_x == up_y == 1:
        return x
    n, c, h, w = x.shape
    x = F.pad(x.reshape(n, c, h, 1, w, 1), [0, up_x - 1, 0, 0, 0, up_y - 1])
    return x.reshape(n, c, h * up_y, w * up_x)

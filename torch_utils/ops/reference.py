"""Definitions of the operators in plain PyTorch: slow, readable, differentiable twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

SQRT2 = math.sqrt(2)


class Activation(NamedTuple):
    """An activation function with its defaults."""

    function: Callable[[torch.Tensor, float], torch.Tensor]  # (x, alpha) -> y
    alpha: float  # default slope for negative numbers; only lrelu uses it
    gain: float  # default output gain, such that unit normal inputs keep their mean square


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
    """Compute y = clamp(act(x + b) · gain). b: along dimension `dim`. clamp: limit of |y|; None sets no limit."""
    u = _widened(x)
    if b is not None:
        # Shape [1, …, −1, …, 1], so that b is broadcast over all dimensions but `dim`.
        u = u + b.to(u.dtype).reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    y = ACTIVATIONS[act].function(u, alpha)
    if gain != 1:
        y = y * gain
    if clamp is not None:
        y = y.clamp(-clamp, clamp)
    return y.to(x.dtype)


def synthesis_tail(
    x: torch.Tensor,
    scale: torch.Tensor | None,
    noise: torch.Tensor | None,
    strength: torch.Tensor | None,
    bias: torch.Tensor | None,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> torch.Tensor:
    """Compute y = clamp(act(x · scale + noise · strength + bias) · gain), [N, C, H, W].

    x: [N, C, H, W]. scale: [N, C]. noise: [H, W] or [N, 1, H, W]. strength: scalar. bias: [C]. None leaves a term out.
    """
    u = _widened(x)
    if scale is not None:
        u = u * scale.to(u.dtype)[:, :, None, None]  # [N, C, 1, 1]
    if noise is not None:
        noise = noise.to(u.dtype)
        u = u + (noise if strength is None else noise * strength.to(u.dtype))
    return bias_act(u, bias, 1, act, alpha, gain, clamp).to(x.dtype)


def compute_type(x: torch.Tensor) -> torch.dtype:
    """Type in which operators on x compute: float64 for float64, else float32. Results are rounded once, at the end."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _widened(x: torch.Tensor) -> torch.Tensor:
    """Convert x to the type in which operators compute."""
    return x.to(compute_type(x))


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip_filter: bool,
    gain: float,
) -> torch.Tensor:
    """Insert zeros between samples, pad, convolve with a FIR filter, and keep every down-th sample.

    x: [N, C, H, W]. f: [fh, fw], or [taps] for its outer product with itself, or None for no filter.
    up, down: (x, y). padding: (x before, x after, y before, y after) of the upsampled image; negative numbers crop.
    flip_filter: correlate instead of convolving. Returns [N, C, H', W'] with H' = (H·up + padding − fh) // down + 1.
    """
    if f is None:
        f = x.new_ones([1, 1], dtype=compute_type(x))
    dtype, channels = x.dtype, x.shape[1]
    x = _insert_zeros(_widened(x), *up)  # [N, C, H·up, W·up]
    x0, x1, y0, y1 = padding
    # Equal padding on opposite sides is left to the convolution, which needs no padded copy of x.
    own = (y0, x0) if f.ndim == 2 and x0 == x1 >= 0 and y0 == y1 >= 0 else (0, 0)
    if any(padding) and not any(own):
        x = _pad_or_crop(x, padding)
    f = f.to(x.dtype)
    if not flip_filter:  # PyTorch's conv2d correlates
        f = f.flip(list(range(f.ndim)))
    # One group per channel: each is filtered on its own. Strides are (y, x), hence the reversed `down`.
    if f.ndim == 2:
        y = F.conv2d(x, (f * gain).expand(channels, 1, -1, -1), groups=channels, stride=down[::-1], padding=own)
        return y.to(dtype)
    # Separable filter: along rows, then along columns.
    y = F.conv2d(x, f.reshape(1, -1).expand(channels, 1, 1, -1), groups=channels, stride=(1, down[0]))
    f = f * gain
    return F.conv2d(y, f.reshape(-1, 1).expand(channels, 1, -1, 1), groups=channels, stride=(down[1], 1)).to(dtype)


def _pad_or_crop(x: torch.Tensor, padding: tuple[int, int, int, int]) -> torch.Tensor:
    """Add zeros where padding is positive, then crop where it is negative.

    In this order a side can lose more samples than x has there, if the other side was padded.
    """
    x = F.pad(x, [max(p, 0) for p in padding])
    x0, x1, y0, y1 = (max(-p, 0) for p in padding)
    return x[:, :, y0 : x.shape[2] - y1, x0 : x.shape[3] - x1]


def _insert_zeros(x: torch.Tensor, up_x: int, up_y: int) -> torch.Tensor:
    """Insert up − 1 zeros after every sample, along both axes: [N, C, H, W] -> [N, C, H·up_y, W·up_x]."""
    if up_x == up_y == 1:
        return x
    n, c, h, w = x.shape
    # Give samples axes of their own, [N, C, H, 1, W, 1], and pad these to up_y and up_x. F.pad begins at the last axis.
    x = F.pad(x.reshape(n, c, h, 1, w, 1), [0, up_x - 1, 0, 0, 0, up_y - 1])
    return x.reshape(n, c, h * up_y, w * up_x)

"""Bias, activation, gain and clamp in one operator."""

from __future__ import annotations

import torch

from torch_utils.ops import reference

ACTIVATIONS = reference.ACTIVATIONS


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> torch.Tensor:
    """y = clamp(act(x + b) · gain).

    x: any shape. b: [x.shape[dim]] or None. alpha, gain: None takes the activation's defaults. clamp: limit of |y|,
    or None for no limit. Returns the shape and dtype of x; differentiable twice. Raises ValueError for an unknown
    activation, or a bias that doesn't fit.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"unknown activation {act!r}; expected one of {', '.join(ACTIVATIONS)}")
    if b is not None and (b.ndim != 1 or not 0 <= dim < x.ndim or b.shape[0] != x.shape[dim]):
        raise ValueError(f"a bias of shape {list(b.shape)} does not fit dimension {dim} of an input {list(x.shape)}")
    if clamp is not None and clamp < 0:
        raise ValueError(f"clamp {clamp} is negative; give a limit of the output's magnitude, or None")
    default = ACTIVATIONS[act]
    alpha = default.alpha if alpha is None else alpha
    gain = default.gain if gain is None else gain
    return reference.bias_act(x, b, dim, act, alpha, gain, clamp)

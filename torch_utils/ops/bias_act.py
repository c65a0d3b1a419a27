"""Bias, activation, gain and clamp in one operator."""

from __future__ import annotations

import math

import torch

from torch_utils.ops import native, reference
from torch_utils.ops.argument_checks import require_floating, require_operand
from torch_utils.ops.registered import NUMBERS, TAIL

ACTIVATIONS = reference.ACTIVATIONS
NATIVE_ON_CPU = ("linear", "lrelu")  # the activations that networks use; on GPUs all are native


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> torch.Tensor:
    """Compute y = clamp(act(x + b) · gain), with the shape and dtype of x. Differentiable twice.

    x: any shape, floating-point. b: [x.shape[dim]] or None. alpha: slope of lrelu. alpha, gain: None uses the
    activation's default. clamp: limit of |y|; None sets no limit.
    Raises ValueError for an unknown activation, numbers that are not floating-point, or a bias that doesn't fit x.
    """
    require_floating(x)
    if b is None:
        dim = min(1, x.ndim - 1)  # any dimension will do without a bias
    else:
        if not 0 <= dim < x.ndim:
            raise ValueError(f"dim {dim} is not one of x {list(x.shape)}; expected 0 to {x.ndim - 1}")
        require_operand(b, "b", x, (x.shape[dim],))
    alpha, gain, limit = activation_settings(act, alpha, gain, clamp)
    trivial = act == "linear" and gain == 1 and clamp is None  # only a sum, which PyTorch also does in one pass
    if trivial or not serve(x, act):
        return reference.bias_act(x, b, dim, act, alpha, gain, clamp)
    if dim == 1 and x.ndim >= 2:
        return native_tail(x, None, None, None, b, act, alpha, gain, limit)
    # The native operator adds the bias along dimension 1: merge the dimensions before and after `dim`.
    # The native operator adds the bias along dimension 1: merge the dimensions before and after `dim`.
    shape = [math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :])] if x.ndim else [1, 1, 1]
    return native_tail(x.reshape(shape), None, None, None, b, act, alpha, gain, limit).reshape(x.shape)


def activation_settings(
    act: str, alpha: float | None, gain: float | None, clamp: float | None
) -> tuple[float, float, float]:
    """Return alpha, gain and limit of |y|, with defaults filled in. Without clamp the limit is infinite.

    Raises ValueError for an unknown activation or a negative clamp.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"unknown activation {act!r}; expected one of {', '.join(ACTIVATIONS)}")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"clamp {clamp} is no limit of the output's magnitude; give 0 or more, or None for no limit")
    default = ACTIVATIONS[act]
    alpha = default.alpha if alpha is None else alpha
    return alpha, default.gain if gain is None else gain, math.inf if clamp is None else clamp


def serve(x: torch.Tensor, act: str) -> bool:
    """Return whether the device of x has a native operator for this activation."""
    return native.serve(x) and (act in NATIVE_ON_CPU or not x.is_cpu)


def native_tail(
    x: torch.Tensor,
    scale: torch.Tensor | None,
    noise: torch.Tensor | None,
    strength: torch.Tensor | None,
    bias: torch.Tensor | None,
    act: str,
    alpha: float,
    gain: float,
    limit: float,
) -> torch.Tensor:
    """Call the native operator behind bias_act and synthesis_tail, with operands in the type that it computes in."""
    # Written out instead of a loop, as a call takes only microseconds.
    compute = reference.compute_type(x)
    if scale is not None and scale.dtype != compute:
        scale = scale.to(compute)
    if noise is not None and noise.dtype != compute:
        noise = noise.to(compute)
    if strength is not None and strength.dtype != compute:
        strength = strength.to(compute)
    if bias is not None and bias.dtype != compute:
        bias = bias.to(compute)
    return TAIL(x, scale, noise, strength, bias, NUMBERS[act], alpha, gain, limit)

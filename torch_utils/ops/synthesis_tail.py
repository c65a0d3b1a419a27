"""Operations after the convolution of a synthesis layer, in one pass: demodulation, noise, bias, activation, clamp."""

from __future__ import annotations

import torch

from torch_utils.ops import reference
from torch_utils.ops.argument_checks import require_floating, require_operand
from torch_utils.ops.bias_act import activation_settings, native_tail, serve


def synthesis_tail(
    x: torch.Tensor,
    scale: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    strength: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> torch.Tensor:
    """Compute y = clamp(act(x · scale + noise · strength + bias) · gain)  (StyleGAN2, figure 2c and equation 3).

    x: [N, C, H, W]. scale: [N, C], such as the demodulation. noise: [H, W] or [N, 1, H, W]; it takes no gradient.
    strength: scalar tensor. bias: [C]. None leaves a term out. alpha, gain, clamp: as in bias_act.
    Returns the shape and dtype of x. Differentiable twice, except by the noise. Raises ValueError if tensors don't fit.
    """
    require_floating(x)
    if x.ndim != 4:
        raise ValueError(f"expected pictures [N, C, H, W], found x {list(x.shape)}")
    n, c, h, w = x.shape
    require_operand(scale, "scale", x, (n, c))
    require_operand(noise, "noise", x, (h, w), (n, 1, h, w))
    require_operand(strength, "strength", x, ())
    require_operand(bias, "bias", x, (c,))
    if strength is not None and noise is None:
        raise ValueError("strength is given without noise; give both, or neither")
    if noise is not None and noise.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"noise {list(noise.shape)} takes no gradient; detach it")
    alpha, gain, limit = activation_settings(act, alpha, gain, clamp)
    if not serve(x, act):
        return reference.synthesis_tail(x, scale, noise, strength, bias, act, alpha, gain, clamp)
    return native_tail(x, scale, noise, strength, bias, act, alpha, gain, limit)

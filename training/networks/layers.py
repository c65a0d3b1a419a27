"""Layers with a run-time weight scale, and the modulated convolution (StyleGAN2, section 2.2)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.synthesis_tail import synthesis_tail
from torch_utils.ops.upfirdn2d import setup_filter

LOWPASS = (1, 3, 3, 1)


def normalize_2nd_moment(x: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Scale each row of [N, features] to a mean square of 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + eps).rsqrt()


class Modulated(NamedTuple):
    """What a modulated convolution leaves to the layer's tail: features that are still to be scaled."""

    x: torch.Tensor  # [N, C', H', W']
    scale: torch.Tensor | None  # [N, C'], the demodulation; None: as it is


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    resample_filter: torch.Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
) -> Modulated:
    """Convolution whose input channels are scaled per sample, and whose output is scaled back to unit variance.

    x: [N, C, H, W]. weight: [C', C, kh, kw]. styles: [N, C]. Scaling the output back, the demodulation, is left to
    `synthesis_tail`, which does it in passing (StyleGAN2, equations 1 and 3). All samples share the weights; their
    input is scaled instead. One grouped convolution with weights per sample was nowhere faster, on CPUs and on an H100.
    """
    if x.dtype == torch.float16 and demodulate:
        # Demodulation cancels any factor, so take those that keep half precision from overflowing.
        fan_in = weight[0].numel()
        weight = weight / (weight.abs().amax(dim=[1, 2, 3], keepdim=True) * math.sqrt(fan_in))
        styles = styles / styles.abs().amax(dim=1, keepdim=True)
    scale = None
    if demodulate:
        power = styles.square() @ weight.square().sum(dim=[2, 3]).T  # [N, C']
        scale = (power + 1e-8).rsqrt()

    if weight.shape[2:] == (1, 1) and up == down == 1 and padding == 0:
        # A 1×1 kernel is scaled itself: with weights of its own, a sample is one matrix product.
        return Modulated(_conv1x1_per_sample(x, weight.flatten(1) * styles[:, None, :]), scale)
    x = synthesis_tail(x, scale=styles)
    x = conv2d_resample(
        x, weight.to(x.dtype), f=resample_filter, up=up, down=down, padding=padding, flip_weight=flip_weight
    )  # [N, C', H·up / down, W·up / down]
    return Modulated(x, scale)


def _conv1x1_per_sample(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """x [N, C, H, W], weights [N, C', C] -> [N, C', H, W] in the layout of x."""
    weights = weights.to(x.dtype)
    if x.is_contiguous(memory_format=torch.channels_last):
        y = x.permute(0, 2, 3, 1).flatten(1, 2) @ weights.transpose(1, 2)  # [N, H·W, C']
        return y.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    return (weights @ x.flatten(2)).unflatten(2, x.shape[2:])


class FullyConnectedLayer(nn.Module):
    """[N, in_features] -> [N, out_features], with an equalized learning rate.

    The stored weight is randn / lr_multiplier; the gain lr_multiplier/√fan_in is applied at run time. The bias is
    stored divided by lr_multiplier too. So one optimizer step moves this layer lr_multiplier times as far.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "linear",
        lr_multiplier: float = 1,
        bias_init: float = 0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], bias_init / lr_multiplier))
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = (self.weight * self.weight_gain).to(x.dtype)
        bias = (self.bias * self.bias_gain).to(x.dtype)
        if self.activation == "linear":
            return torch.addmm(bias, x, weight.T)
        return bias_act(x @ weight.T, bias, act=self.activation)


class Conv2dLayer(nn.Module):
    """Convolution with an equalized learning rate, bias, activation, clamp: [N, C, H, W] -> [N, C', H/down, W/down]."""

    resample_filter: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = "linear",
        down: int = 1,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.down, self.conv_clamp = activation, down, conv_clamp
        self.padding = kernel_size // 2
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.register_buffer("resample_filter", setup_filter(LOWPASS))

    def forward(self, x: torch.Tensor, gain: float = 1) -> torch.Tensor:
        # Without bias, activation and clamp, the weights take up the gain, which saves a pass over the result.
        bare = self.bias is None and self.activation == "linear" and self.conv_clamp is None
        weight_gain = self.weight_gain * gain if bare else self.weight_gain
        weight = (self.weight * weight_gain).to(x.dtype)
        x = conv2d_resample(x, weight, f=self.resample_filter, down=self.down, padding=self.padding)
        if bare:
            return x
        return scaled_bias_act(x, self.bias, self.activation, gain, self.conv_clamp)


def scaled_bias_act(
    x: torch.Tensor, bias: torch.Tensor | None, activation: str, gain: float, clamp: float | None
) -> torch.Tensor:
    """bias_act with the activation's own gain times `gain`, and the clamp scaled by `gain` as well."""
    return bias_act(
        x,
        bias,
        act=activation,
        gain=ACTIVATIONS[activation].gain * gain,
        clamp=None if clamp is None else clamp * gain,
    )


class MappingNetwork(nn.Module):
    """z [N, z_dim] and class label c [N, c_dim] -> w [N, num_ws, w_dim] (StyleGAN, section 2).

    num_ws None returns [N, w_dim], as the discriminator uses it (with z_dim 0). w_avg is the running mean of w that
    truncation pulls towards; it moves only when a forward call is told to update it.
    """

    W_AVG_BETA = 0.995  # decay of w_avg at an update
    w_avg: torch.Tensor  # [w_dim]

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        num_layers: int = 8,
        lr_multiplier: float = 0.01,
        track_average: bool = True,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws, self.num_layers = z_dim, c_dim, w_dim, num_ws, num_layers
        in_features = z_dim
        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, w_dim)
            in_features += w_dim
        for i in range(num_layers):
            layer = FullyConnectedLayer(in_features, w_dim, activation="lrelu", lr_multiplier=lr_multiplier)
            setattr(self, f"fc{i}", layer)
            in_features = w_dim
        if track_average:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: torch.Tensor | None,
        c: torch.Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_average: bool = False,
    ) -> torch.Tensor:
        """truncation_psi moves the first truncation_cutoff w's (all by default) towards w_avg."""
        inputs = []
        if self.z_dim > 0:
            assert z is not None
            inputs.append(normalize_2nd_moment(z.to(torch.float32)))
        if self.c_dim > 0:
            assert c is not None
            inputs.append(normalize_2nd_moment(self.embed(c.to(torch.float32))))  # [N, w_dim]
        x = torch.cat(inputs, dim=1)  # [N, z_dim + w_dim], or one of them
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)  # [N, w_dim]
        if update_average:
            self.w_avg.lerp_(x.detach().mean(dim=0), 1 - self.W_AVG_BETA)
        if self.num_ws is None:
            return x
        x = x.unsqueeze(1).repeat(1, self.num_ws, 1)  # [N, num_ws, w_dim]
        if truncation_psi != 1:
            truncated = self.w_avg.lerp(x[:, :truncation_cutoff], truncation_psi)
            x = truncated if truncation_cutoff is None else torch.cat([truncated, x[:, truncation_cutoff:]], dim=1)
        return x

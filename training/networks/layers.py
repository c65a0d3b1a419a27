"""Layers with an equalized learning rate, and the modulated convolution (StyleGAN2, section 2.2).

Equalized learning rate (Karras et al. 2018, section 4.1): weights are stored with unit variance, and scaled by
1/√fan_in at run time. Adam then moves all of them at the same relative speed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.reference import compute_type
from torch_utils.ops.synthesis_tail import synthesis_tail
from torch_utils.ops.upfirdn2d import setup_filter

LOWPASS = (1, 3, 3, 1)  # binomial filter for resampling, before normalization


def normalize_2nd_moment(x: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Scale each row of x [N, features] to a mean square of 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + eps).rsqrt()


class Modulated(NamedTuple):
    """Result of a modulated convolution whose demodulation is still to be applied, as x · scale."""

    x: torch.Tensor  # [N, C', H', W']
    scale: torch.Tensor | None  # [N, C']; None: no demodulation


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
    """Convolve with weights that are scaled per sample and input channel (StyleGAN2, equations 1 and 3).

    x: [N, C, H, W]. weight: [C', C, kh, kw]. styles: [N, C]. demodulate: also compute the scale that brings each output
    channel back to unit variance; `synthesis_tail` applies it in the same pass as noise and bias.
    Scaling the input by the styles gives the same result as scaling the weights, so all samples share one convolution.
    A grouped convolution with weights for each sample was never faster, neither on CPUs nor on an H100.
    """
    if x.dtype in (torch.float16, torch.bfloat16) and demodulate:
        # Demodulation cancels constant factors, so choose factors that keep half precision from overflowing.
        fan_in = weight[0].numel()  # C · kh · kw
        weight = weight / (weight.abs().amax(dim=[1, 2, 3], keepdim=True) * math.sqrt(fan_in))
        styles = styles / styles.abs().amax(dim=1, keepdim=True)
    scale = None
    if demodulate:
        # Equation 3: 1/√(Σ (style · weight)²). The sum over C is a matrix product.
        power = styles.square() @ weight.square().sum(dim=[2, 3]).T  # [N, C']
        scale = (power + 1e-8).rsqrt()

    if weight.shape[2:] == (1, 1) and up == down == 1 and padding == 0:
        # A 1×1 kernel is small enough to scale per sample, [N, C', C]. The convolution is then a matrix product.
        return Modulated(_conv1x1_per_sample(x, weight.flatten(1) * styles[:, None, :]), scale)
    x = synthesis_tail(x, scale=styles)  # x · styles, [N, C, H, W]
    x = conv2d_resample(
        x, weight.to(x.dtype), f=resample_filter, up=up, down=down, padding=padding, flip_weight=flip_weight
    )  # [N, C', H·up / down, W·up / down]
    return Modulated(x, scale)


def _conv1x1_per_sample(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Convolve x [N, C, H, W] with weights [N, C', C]. Returns [N, C', H, W] in the memory layout of x."""
    weights = weights.to(x.dtype)
    if x.is_contiguous(memory_format=torch.channels_last):
        # In memory x is [N, H, W, C]: this view of it needs no copy.
        y = x.permute(0, 2, 3, 1).flatten(1, 2) @ weights.transpose(1, 2)  # [N, H·W, C']
        return y.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)  # [N, C', H, W]
    return (weights @ x.flatten(2)).unflatten(2, x.shape[2:])  # [N, C', H·W] -> [N, C', H, W]


class FullyConnectedLayer(nn.Module):
    """Linear layer with an equalized learning rate: [N, in_features] -> [N, out_features].

    Weight and bias are stored divided by lr_multiplier, and multiplied by it at run time. An optimizer step then moves
    this layer lr_multiplier times as far as others.
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
            return torch.addmm(bias, x, weight.T)  # one call instead of two
        return bias_act(x @ weight.T, bias, act=self.activation)


class Conv2dLayer(nn.Module):
    """Convolution with an equalized learning rate, bias, activation, clamp: [N, C, H, W] -> [N, C', H/down, W/down]."""

    resample_filter: torch.Tensor  # [4, 4]

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
        # Without bias, activation and clamp the layer is linear: scaling the weights saves a pass over the result.
        bare = self.bias is None and self.activation == "linear" and self.conv_clamp is None
        weight_gain = self.weight_gain * gain if bare else self.weight_gain
        weight = (self.weight * weight_gain).to(x.dtype)
        # [N, C', H / down, W / down]
        x = conv2d_resample(x, weight, f=self.resample_filter, down=self.down, padding=self.padding)
        if bare:
            return x
        return scaled_bias_act(x, self.bias, self.activation, gain, self.conv_clamp)


def scaled_bias_act(
    x: torch.Tensor, bias: torch.Tensor | None, activation: str, gain: float, clamp: float | None
) -> torch.Tensor:
    """Apply bias_act, and multiply its result by `gain`: activation's gain and clamp are both scaled."""
    return bias_act(
        x,
        bias,
        act=activation,
        gain=ACTIVATIONS[activation].gain * gain,
        clamp=None if clamp is None else clamp * gain,
    )


class MappingNetwork(nn.Module):
    """Latents z [N, z_dim] and class labels c [N, c_dim] -> w [N, num_ws, w_dim] (StyleGAN, section 2).

    With num_ws None it returns [N, w_dim]. The discriminator embeds class labels with such a network, with z_dim 0.
    """

    W_AVG_BETA = 0.995  # decay of w_avg at an update
    w_avg: torch.Tensor  # [w_dim], running mean of w, for truncation; `move_average` changes it

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
    ) -> torch.Tensor:
        """Map latents to w's.

        Truncation (StyleGAN, appendix B) moves the first truncation_cutoff w's, by default all, towards w_avg.
        truncation_psi: 1 leaves them where they are, 0 makes them w_avg.
        """
        dtype = compute_type(next(self.parameters()))
        inputs = []
        if self.z_dim > 0:
            assert z is not None
            inputs.append(normalize_2nd_moment(z.to(dtype)))  # [N, z_dim]
        if self.c_dim > 0:
            assert c is not None
            inputs.append(normalize_2nd_moment(self.embed(c.to(dtype))))  # [N, w_dim]
        x = torch.cat(inputs, dim=1)  # [N, z_dim + w_dim], or one of the two
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)  # [N, w_dim]
        if self.num_ws is None:
            return x
        x = x.unsqueeze(1).repeat(1, self.num_ws, 1)  # [N, num_ws, w_dim]
        if truncation_psi != 1:
            # A slice up to None is all of x.
            truncated = self.w_avg.lerp(x[:, :truncation_cutoff], truncation_psi)
            x = truncated if truncation_cutoff is None else torch.cat([truncated, x[:, truncation_cutoff:]], dim=1)
        return x

    def move_average(self, mean_w: torch.Tensor) -> None:
        """Move w_avg towards the mean of a minibatch's w, [w_dim]."""
        self.w_avg.lerp_(mean_w, 1 - self.W_AVG_BETA)

"""Generator: mapping network, synthesis network with skip outputs, joint head (StyleGAN2, figures 2 and 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from torch_utils.ops.synthesis_tail import synthesis_tail
from torch_utils.ops.upfirdn2d import setup_filter, upsample2d
from training.config import GeneratorConfig
from training.networks.joint_head import JointHead
from training.networks.layers import LOWPASS, FullyConnectedLayer, MappingNetwork, modulated_conv2d, scaled_bias_act
from training.networks.shapes import channels_at, compute_dtype, resolutions_up_to, runs_in_half

NOISE_MODES = ("random", "const", "none")


class SynthesisLayer(nn.Module):
    """Modulated 3×3 convolution, noise, bias, leaky ReLU: [N, C, H, W] -> [N, C', H·up, W·up]."""

    noise_const: torch.Tensor  # [resolution, resolution]
    resample_filter: torch.Tensor  # [4, 4]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        up: int = 1,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.resolution, self.up, self.conv_clamp = resolution, up, conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.register_buffer("resample_filter", setup_filter(LOWPASS))

    def forward(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        noise_mode: str = "random",
        generators: Sequence[torch.Generator] | None = None,
    ) -> torch.Tensor:
        noise = self._noise(len(x), noise_mode, generators)  # [N, 1, H·up, W·up] or [H·up, W·up]
        # x: [N, C', H·up, W·up]. scale: [N, C'], which synthesis_tail applies in the same pass as the noise.
        x, scale = modulated_conv2d(
            x,
            self.weight,
            styles=self.affine(w),
            up=self.up,
            padding=1,
            resample_filter=self.resample_filter,
            flip_weight=self.up == 1,  # published checkpoints store the kernels of upsampling layers flipped
        )
        strength = None if noise is None else self.noise_strength
        return synthesis_tail(x, scale, noise, strength, self.bias, act="lrelu", clamp=self.conv_clamp)

    def _noise(self, batch: int, noise_mode: str, generators: Sequence[torch.Generator] | None) -> torch.Tensor | None:
        """Noise for the whole batch, [N, 1, H, W], or [H, W] if all samples share it; None without noise."""
        if noise_mode == "none":
            return None
        if noise_mode == "const":
            return self.noise_const
        shape = [1, self.resolution, self.resolution]
        if generators is None:
            noise = torch.randn([batch, *shape], device=self.noise_const.device)
        else:
            noise = torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators])
        return noise.to(self.noise_const.device)


class ToRGBLayer(nn.Module):
    """Image output of one resolution: modulated 1×1 convolution without demodulation, bias, clamp.

    [N, C, H, W] -> [N, contrasts + label maps, H, W]. "RGB" is its name in published checkpoints.
    """

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, conv_clamp: float | None = None) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1 / math.sqrt(in_channels)

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        # The gain, which equalizes the learning rate, goes into the styles: they have fewer elements than the weights.
        x, _ = modulated_conv2d(x, self.weight, styles=self.affine(w) * self.weight_gain, demodulate=False)
        return scaled_bias_act(x, self.bias, "linear", 1, self.conv_clamp)


class SynthesisBlock(nn.Module):
    """Layers of one resolution: features [N, C, H / 2, W / 2] -> [N, C', H, W].

    The block at 4×4 has no input: it starts from a learned constant, and has one convolution instead of two.
    """

    resample_filter: torch.Tensor  # [4, 4]

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        use_fp16: bool,
        conv_clamp: float | None,
    ) -> None:
        super().__init__()
        self.use_fp16 = use_fp16
        self.num_conv = 1 if in_channels is None else 2
        self.register_buffer("resample_filter", setup_filter(LOWPASS))
        if in_channels is None:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, up=2, conv_clamp=conv_clamp)
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, conv_clamp=conv_clamp)
        self.torgb = ToRGBLayer(out_channels, img_channels, w_dim, conv_clamp=conv_clamp)

    def forward(
        self, x: torch.Tensor | None, img: torch.Tensor | None, ws: torch.Tensor, **noise
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute features, and the image up to this resolution in float32.

        ws: [N, num_conv + 1, w_dim], one w for each layer. noise: arguments of SynthesisLayer.
        """
        dtype = compute_dtype(self.use_fp16, ws.device)
        layer_ws = iter(ws.unbind(dim=1))  # each layer takes the next w, [N, w_dim]
        if self.num_conv == 1:
            x = self.const.to(dtype).expand(len(ws), -1, -1, -1)  # [N, C', 4, 4]
        else:
            assert x is not None
            x = self.conv0(x.to(dtype), next(layer_ws), **noise)  # [N, C, H / 2, W / 2] -> [N, C', H, W]
        x = self.conv1(x, next(layer_ws), **noise)  # [N, C', H, W]
        y = self.torgb(x, next(layer_ws)).to(torch.float32)  # [N, C + K, H, W]
        if img is not None:
            y = upsample2d(img, self.resample_filter) + y  # img: [N, C + K, H / 2, W / 2]
        return x, y


class SynthesisNetwork(nn.Module):
    """w [N, num_ws, w_dim] -> joint slices [N, C + K, H, W] with values around [−1, 1]."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.resolutions = resolutions_up_to(config.resolution)
        self.num_ws = 2 * len(self.resolutions)  # a w for each convolution, and one for the last image output
        in_channels = None
        for resolution in self.resolutions:
            out_channels = channels_at(resolution, config.channel_base, config.channel_max)
            block = SynthesisBlock(
                in_channels,
                out_channels,
                config.w_dim,
                resolution,
                img_channels=config.num_contrasts + config.num_maps,
                use_fp16=runs_in_half(resolution, config.resolution, config.num_fp16_res),
                conv_clamp=config.conv_clamp,
            )
            setattr(self, f"b{resolution}", block)  # published checkpoints name the blocks b4, b8, …
            in_channels = out_channels
        self.head = JointHead(config.num_contrasts, config.num_maps) if config.num_maps else nn.Identity()

    def forward(
        self,
        ws: torch.Tensor,
        noise_mode: str = "random",
        generators: Sequence[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """Generate joint slices.

        noise_mode: "random" draws fresh noise, "const" uses the stored buffers, "none" adds no noise.
        generators: one per sample, for random noise; None draws from torch's global generator.
        """
        assert noise_mode in NOISE_MODES, noise_mode
        ws = ws.to(torch.float32)
        x = img = None
        first = 0
        for resolution in self.resolutions:
            block = getattr(self, f"b{resolution}")
            # Blocks overlap by one w: the image output uses the w of the next block's first convolution.
            block_ws = ws.narrow(1, first, block.num_conv + 1)  # [N, num_conv + 1, w_dim]
            x, img = block(x, img, block_ws, noise_mode=noise_mode, generators=generators)
            first += block.num_conv
        return self.head(img)


class Generator(nn.Module):
    """Latents z [N, z_dim] and class labels c [N, c_dim] -> joint slices [N, C + K, H, W]."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.synthesis = SynthesisNetwork(config)
        self.mapping = MappingNetwork(
            config.z_dim, config.c_dim, config.w_dim, self.synthesis.num_ws, config.mapping_layers
        )
        # Nearly twice as fast on a CPU. Activations take the layout of the weights.
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        z: torch.Tensor,
        c: torch.Tensor | None = None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        **synthesis,
    ) -> torch.Tensor:
        # [N, num_ws, w_dim]
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        return self.synthesis(ws, **synthesis)

"""Generator: mapping network, synthesis network with skip outputs, joint head (StyleGAN2, figures 2 and 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from torch_utils.ops.reference import compute_type
from torch_utils.ops.synthesis_tail import synthesis_tail
from torch_utils.ops.upfirdn2d import setup_filter, upsample2d
from training.config import GeneratorConfig
from training.networks.joint_head import JointHead
from training.networks.layers import LOWPASS, FullyConnectedLayer, MappingNetwork, modulated_conv2d, scaled_bias_act
from training.networks.shapes import block_type, channels_at, half_type, resolutions_up_to

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

    def forward(self, x: torch.Tensor, w: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """noise: [N, 1, H·up, W·up], or [H·up, W·up] if all samples share it; None adds no noise."""
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
        half: torch.dtype | None,
        conv_clamp: float | None,
    ) -> None:
        super().__init__()
        self.half_type = half  # type of 16 bits, see `block_type`
        self.num_conv = 1 if in_channels is None else 2
        self.register_buffer("resample_filter", setup_filter(LOWPASS))
        if in_channels is None:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, up=2, conv_clamp=conv_clamp)
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, conv_clamp=conv_clamp)
        self.torgb = ToRGBLayer(out_channels, img_channels, w_dim, conv_clamp=conv_clamp)

    @property
    def layers(self) -> list[SynthesisLayer]:
        """The convolutions, which add noise."""
        return [self.conv1] if self.num_conv == 1 else [self.conv0, self.conv1]

    def forward(
        self,
        x: torch.Tensor | None,
        img: torch.Tensor | None,
        ws: torch.Tensor,
        noises: Sequence[torch.Tensor | None],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute features, and the image up to this resolution in the type of the parameters.

        ws: [N, num_conv + 1, w_dim], one w for each layer. noises: of each convolution, as SynthesisLayer takes it.
        """
        *layer_ws, image_w = ws.unbind(dim=1)  # [N, w_dim] each
        if x is None:
            x = self.const.expand(len(ws), -1, -1, -1)  # [N, C', 4, 4]
        x = x.to(block_type(self.half_type, self.conv1.weight))
        for layer, w, noise in zip(self.layers, layer_ws, noises, strict=True):
            x = layer(x, w, noise)  # [N, C', H, W]
        y = self.torgb(x, image_w).to(ws.dtype)  # [N, C + K, H, W]
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
                half=half_type(config, resolution),
                conv_clamp=config.conv_clamp,
            )
            setattr(self, f"b{resolution}", block)  # published checkpoints name the blocks b4, b8, …
            in_channels = out_channels
        self.head = JointHead(config.num_contrasts, config.num_maps) if config.num_maps else nn.Identity()
        # Numbers of random noise for a sample: one for each pixel of each convolution's output.
        self.noise_size = sum(layer.resolution**2 for layer in self.layers)

    @property
    def blocks(self) -> list[SynthesisBlock]:
        """The blocks, from 4×4 up."""
        return [getattr(self, f"b{resolution}") for resolution in self.resolutions]

    @property
    def layers(self) -> list[SynthesisLayer]:
        """The convolutions of all blocks, from 4×4 up."""
        return [layer for block in self.blocks for layer in block.layers]

    def forward(self, ws: torch.Tensor, noise_mode: str = "random", noise: torch.Tensor | None = None) -> torch.Tensor:
        """Generate joint slices, in the type of the parameters.

        noise_mode: "random" uses `noise`, "const" the stored buffers, "none" adds no noise.
        noise: unit normal, [N, noise_size]; None draws it from torch's global generator.
        """
        ws = ws.to(compute_type(next(self.parameters())))
        noises = self._noises(ws, noise_mode, noise)
        x = img = None
        first = 0
        for block in self.blocks:
            # Blocks overlap by one w: the image output uses the w of the next block's first convolution.
            block_ws = ws.narrow(1, first, block.num_conv + 1)  # [N, num_conv + 1, w_dim]
            x, img = block(x, img, block_ws, noises[first : first + block.num_conv])
            first += block.num_conv
        return self.head(img)

    def _noises(self, ws: torch.Tensor, noise_mode: str, noise: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
        """Noise of each convolution, from 4×4 up, as SynthesisLayer takes it."""
        assert noise_mode in NOISE_MODES, noise_mode
        layers = self.layers
        if noise_mode == "none":
            return [None] * len(layers)
        if noise_mode == "const":
            return [layer.noise_const for layer in layers]
        if noise is None:
            noise = torch.randn([len(ws), self.noise_size], dtype=ws.dtype, device=ws.device)
        shares = noise.to(ws.dtype).split([layer.resolution**2 for layer in layers], dim=1)  # [N, H·W] each
        return [
            # Contiguous, as kernels need it: otherwise each would make a copy, forward and backward.
            share.contiguous().unflatten(1, (1, layer.resolution, layer.resolution))  # [N, 1, H, W]
            for share, layer in zip(shares, layers, strict=True)
        ]


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

    def without_bfloat16(self) -> Generator:
        """Compute in float32 from now on where blocks would use bfloat16. Returns this generator.

        Libraries add up in an order that depends on the batch. With the 8 bits of bfloat16 a slice then differs by
        several gray levels from the same slice in another batch.
        """
        for block in self.synthesis.blocks:
            if block.half_type == torch.bfloat16:
                block.half_type = None
        return self

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

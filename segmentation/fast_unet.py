"""The function of MONAI's BasicUNet, in the fastest way that was found on a CPU.

A step of training at few channels spends its time in memory layouts: oneDNN's convolutions reorder channel planes for
each call, and PyTorch's normalization, pooling and transposed convolution have slow kernels for one layout or the
other. Here all pictures lie pixel by pixel (channels last), which suits the convolutions, and the other operators are
written such that they suit it too. Channels that are multiples of 16 take the native 3×3 convolutions.

The network is not touched: its modules hold the parameters, and `network(images)` gives the same logits.
benchmarks/segmentation.py has the times.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from torch_utils.ops.conv2d_gradfix import MULTIPLE, conv2d

HALVINGS = 4  # of the picture's edges, down to the lowest level
_FEW_PIXELS = 256  # up to which normalization in planes of channels was measured to be faster


def compute_logits(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Compute network(images) in the fastest way: [N, C, H, W] -> [N, K, H, W]."""
    fast = (
        images.is_cpu
        and images.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        # MONAI pads pictures whose edges cannot be halved four times.
        and all(edge % 2**HALVINGS == 0 for edge in images.shape[2:])
    )
    return fast_logits(network, images) if fast else network(images)


def fast_logits(network: Any, images: torch.Tensor) -> torch.Tensor:
    """Compute network(images) for a 2-D BasicUNet without dropout, on a CPU: [N, C, H, W] -> [N, K, H, W].

    Each convolution is followed by instance normalization, which removes its bias again. So the biases are neither
    added nor do they get a gradient. (With PyTorch's operators their gradient is rounding error.)
    """
    x = _two_convolutions(network.conv_0, images.contiguous(memory_format=torch.channels_last))
    skipped = [x]
    for down in (network.down_1, network.down_2, network.down_3, network.down_4):
        x = _two_convolutions(down.convs, F.max_pool2d(x, 2))
        skipped.append(x)
    skipped.pop()  # the lowest level itself
    for up in (network.upcat_4, network.upcat_3, network.upcat_2, network.upcat_1):
        x = torch.cat([skipped.pop(), _double(up.upsample.deconv, x)], dim=1)
        x = _two_convolutions(up.convs, x)
    return _mix_channels(network.final_conv, x)


def _two_convolutions(blocks: Any, x: torch.Tensor) -> torch.Tensor:
    """MONAI's TwoConv: twice a 3×3 convolution, instance normalization, leaky ReLU."""
    for block in (blocks.conv_0, blocks.conv_1):
        x = _convolve(x, block.conv.weight)
        x = _normalize_and_activate(x, block.adn.N, block.adn.A.negative_slope)
    return x


def _convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A 3×3 convolution of channels-last x, with zeros around the picture."""
    if any(channels % MULTIPLE for channels in weight.shape[:2]) and not any(
        channels % (MULTIPLE // 2) for channels in weight.shape[:2]
    ):
        # Pairs of neighbors along a row count as one pixel with twice the channels, enough for the native convolution.
        # That is the same memory. Half of the pairs' weights are 0, but the native convolution is faster nonetheless.
        return _unpaired(conv2d(_paired(x), _weight_of_pairs(weight), padding=1))
    return conv2d(x, weight, padding=1)


def _paired(x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] in channels last -> the same memory as [N, 2 · C, H, W / 2]."""
    n, c, h, w = x.shape
    return _rows(x).view(n, h, w // 2, 2 * c).permute(0, 3, 1, 2)


def _unpaired(x: torch.Tensor) -> torch.Tensor:
    """The inverse of _paired."""
    n, c, h, w = x.shape
    return _rows(x).view(n, h, 2 * w, c // 2).permute(0, 3, 1, 2)


def _weight_of_pairs(weight: torch.Tensor) -> torch.Tensor:
    """The weight [C', C, 3, 3] of a convolution -> that of the same convolution of pairs, [2 · C', 2 · C, 3, 3]."""
    out, channels = weight.shape[:2]
    of_pairs = (weight.reshape(-1, 3) @ _TAPS_OF_PAIRS.to(weight.dtype)).view(
        out, channels, 3, 3, 2, 2
    )  # [C', C, down, along, q, p]
    return of_pairs.permute(5, 0, 4, 1, 2, 3).reshape(2 * out, 2 * channels, 3, 3)


# For each of the three taps along a row: which pixel q of which of three pairs it takes to which pixel p of the middle
# pair, as [tap, pair · q · p].
_TAPS_OF_PAIRS = torch.tensor(
    [[float(2 * pair + q - p == tap + 1) for pair in range(3) for q in range(2) for p in range(2)] for tap in range(3)]
)


def _double(deconv: torch.nn.ConvTranspose2d, x: torch.Tensor) -> torch.Tensor:
    """A transposed convolution of 2×2 taps with stride 2: every pixel becomes 2×2 of its own, by a matrix product."""
    (n, _, h, w), out = x.shape, deconv.out_channels
    taps = deconv.weight.permute(2, 3, 1, 0).reshape(4 * out, -1)  # [2·2·C', C]
    y = F.linear(_rows(x), taps, deconv.bias.repeat(4)).view(n, h, w, 2, 2, out)  # type: ignore[union-attr]
    return y.transpose(2, 3).reshape(n, 2 * h, 2 * w, out).permute(0, 3, 1, 2)


def _mix_channels(conv: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A 1×1 convolution. Its output has planes of channels (contiguous), which suits the loss."""
    y = F.linear(_rows(x), conv.weight.flatten(1), conv.bias)  # [N, H, W, C']
    return y.permute(0, 3, 1, 2).contiguous()


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] in channels last -> the same memory as [N, H, W, C]."""
    return x.permute(0, 2, 3, 1)


def _normalize_and_activate(x: torch.Tensor, norm: torch.nn.InstanceNorm2d, slope: float) -> torch.Tensor:
    """Instance normalization and leaky ReLU, [N, C, H, W] -> the same. Both are in channels last."""
    few = x.shape[2] * x.shape[3] <= _FEW_PIXELS
    function = _NormalizePlanes if few else _NormalizeRows
    return function.apply(x, norm.weight, norm.bias, norm.eps, slope)


class _NormalizePlanes(torch.autograd.Function):
    """_normalize_and_activate for few pixels: PyTorch's operators, which are fast for planes of channels."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, slope: float
    ) -> torch.Tensor:
        n, c, h, w = x.shape
        x = x.contiguous()
        # Groups of one channel each: its kernel is faster than that of instance normalization.
        y, mean, inverse = torch.native_group_norm(x, weight, bias, n, c, h * w, c, eps)
        F.leaky_relu_(y, slope)
        ctx.save_for_backward(x, y, mean, inverse, weight)
        ctx.slope = slope
        return y.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, y, mean, inverse, weight = ctx.saved_tensors
        n, c, h, w = dy.shape
        dy = torch.ops.aten.leaky_relu_backward(dy.contiguous(), y, ctx.slope, True)  # by its output
        dx, *of_parameters = torch.ops.aten.native_group_norm_backward(
            dy, x, mean, inverse, weight, n, c, h * w, c, [True, True, True]
        )
        return dx.contiguous(memory_format=torch.channels_last), *of_parameters, None, None


class _NormalizeRows(torch.autograd.Function):
    """_normalize_and_activate for many pixels, in channels last throughout.

    A row of a picture, [W · C], is handled as one vector. A vector of a few channels only would leave most of a
    processor's lanes empty.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, slope: float
    ) -> torch.Tensor:
        n, c, h, w = x.shape
        rows = _rows(x).reshape(n, h, w * c)
        centered = rows - _spread(_sum(rows, c).div_(h * w), w)
        inverse = _sum(centered * centered, c).div_(h * w).add_(eps).rsqrt_()  # of the standard deviation, [N, C]
        y = torch.addcmul(_spread(bias, w), centered, _spread(inverse * weight, w))
        F.leaky_relu_(y, slope)
        ctx.save_for_backward(centered, y, inverse, weight)
        ctx.slope = slope
        return y.view(n, h, w, c).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        centered, y, inverse, weight = ctx.saved_tensors
        n, c, h, w = dy.shape
        dy = torch.ops.aten.leaky_relu_backward(_rows(dy).reshape(n, h, w * c), y, ctx.slope, True)  # by its output
        d_bias = _sum(dy, c)  # of each picture, [N, C]
        d_weight = _sum(dy * centered, c).mul_(inverse)
        # With x̂ = centered · inverse:  dx = weight · inverse · (dy − mean(dy) − x̂ · mean(dy · x̂))
        scale = inverse * weight
        of_mean, of_slope = (scale * d_bias).div_(-h * w), (scale * inverse * d_weight).div_(-h * w)
        dx = torch.addcmul(_spread(of_mean, w), dy, _spread(scale, w)).addcmul_(centered, _spread(of_slope, w))
        return dx.view(n, h, w, c).permute(0, 3, 1, 2), d_weight.sum(0), d_bias.sum(0), None, None


def _sum(rows: torch.Tensor, channels: int) -> torch.Tensor:
    """Sum over the pixels of each picture: [N, H, W · C] -> [N, C]."""
    return rows.sum(1).view(len(rows), -1, channels).sum(1)


def _spread(values: torch.Tensor, width: int) -> torch.Tensor:
    """Repeat values for all pixels of a row: [N, C] -> [N, 1, W · C], or [C] -> [1, W · C]."""
    return values[..., None, :].expand(*values.shape[:-1], width, -1).reshape(*values.shape[:-1], 1, -1)

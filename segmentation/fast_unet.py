"""The function of MONAI's BasicUNet, in the fastest way that was found on a CPU.

A step of training at few channels spends its time in memory layouts: oneDNN's convolutions reorder channel planes for
each call, and PyTorch's normalization, pooling and transposed convolution have slow kernels for one layout or the
other. Here all pictures lie pixel by pixel (channels last), which suits the convolutions, and the other operators are
written such that they suit it too. Channels that are multiples of 16 take the native 3×3 convolutions.

The network is not touched: its modules hold the parameters, and `network(images)` gives the same logits.
benchmarks/segmentation.py has the times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from torch_utils.ops.conv2d_gradfix import MULTIPLE, Geometry, convolve, gradients

HALVINGS = 4  # of the picture's edges, down to the lowest level
_FEW_PIXELS = 256  # of a picture, up to which normalization in planes of channels was measured to be faster
_FEWEST_NATIVE = 512  # pixels of a batch, from which native convolutions were measured to be faster
_SAME = Geometry(stride=1, padding=(1, 1), transposed=False, output_padding=(0, 0), groups=1)


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
        norm = block.adn.N
        x = _Block.apply(x, block.conv.weight, norm.weight, norm.bias, norm.eps, block.adn.A.negative_slope)
    return x


class _Block(torch.autograd.Function):
    """A 3×3 convolution with zeros around the picture, instance normalization, leaky ReLU; all in channels last.

    One function of all three, because PyTorch's bookkeeping of each operator takes as long as a small picture.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,  # [N, C, H, W]
        taps: torch.Tensor,  # [C', C, 3, 3]
        weight: torch.Tensor,  # of the normalization, [C']
        bias: torch.Tensor,  # [C']
        eps: float,
        slope: float,
    ) -> torch.Tensor:
        # Pairs of neighbors along a row count as one pixel with twice the channels, if that is enough for the native
        # convolution. It is the same memory. Half of the pairs' weights are 0, but native it is faster nonetheless.
        ctx.pairs = _has_multiples(taps, MULTIPLE // 2) and not _has_multiples(taps, MULTIPLE)
        if ctx.pairs:
            x, taps = _paired(x), _taps_of_pairs(taps)
        taps = taps.contiguous(memory_format=torch.channels_last)
        y = convolve(x, taps, _SAME, _FEWEST_NATIVE)
        y = _unpaired(y) if ctx.pairs else y
        ctx.norm = _Planes if y.shape[2] * y.shape[3] <= _FEW_PIXELS else _Rows
        y, saved = ctx.norm.forward(y, weight, bias, eps, slope)
        ctx.save_for_backward(x, taps, weight, *saved)
        ctx.slope = slope
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, taps, weight, *saved = ctx.saved_tensors
        dy, d_weight, d_bias = ctx.norm.backward(dy, weight, saved, ctx.slope)
        dy = _paired(dy) if ctx.pairs else dy
        dx, d_taps = gradients(x, dy, taps, _SAME, (ctx.needs_input_grad[0], True), _FEWEST_NATIVE)
        if ctx.pairs:
            dx, d_taps = None if dx is None else _unpaired(dx), _from_taps_of_pairs(d_taps)
        return dx, d_taps, d_weight, d_bias, None, None


def _has_multiples(taps: torch.Tensor, multiple: int) -> bool:
    """Whether both numbers of channels are multiples."""
    return taps.shape[0] % multiple == taps.shape[1] % multiple == 0


def _paired(x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] in channels last -> the same memory as [N, 2 · C, H, W / 2]."""
    n, c, h, w = x.shape
    return _rows(x).view(n, h, w // 2, 2 * c).permute(0, 3, 1, 2)


def _unpaired(x: torch.Tensor) -> torch.Tensor:
    """The inverse of _paired."""
    n, c, h, w = x.shape
    return _rows(x).view(n, h, 2 * w, c // 2).permute(0, 3, 1, 2)


def _taps_of_pairs(taps: torch.Tensor) -> torch.Tensor:
    """The taps [C', C, 3, 3] of a convolution -> those of the same convolution of pairs, [2 · C', 2 · C, 3, 3]."""
    out, channels = taps.shape[:2]
    of_pairs = (taps.reshape(-1, 3) @ _TAPS_OF_PAIRS.to(taps.dtype)).view(out, channels, 3, 3, 2, 2)
    return of_pairs.permute(5, 0, 4, 1, 2, 3).reshape(2 * out, 2 * channels, 3, 3)  # from [C', C, down, along, q, p]


def _from_taps_of_pairs(gradient: torch.Tensor | None) -> torch.Tensor:
    """The transpose of _taps_of_pairs: gradients [2 · C', 2 · C, 3, 3] -> [C', C, 3, 3]."""
    assert gradient is not None, "it was asked for"
    out, channels = gradient.shape[0] // 2, gradient.shape[1] // 2
    of_pairs = gradient.reshape(2, out, 2, channels, 3, 3).permute(1, 3, 4, 5, 2, 0)
    return (of_pairs.reshape(-1, 12) @ _TAPS_OF_PAIRS.to(gradient.dtype).T).view(out, channels, 3, 3)


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


Saved = Sequence[torch.Tensor]  # for the backward pass


class _Planes:
    """Instance normalization and leaky ReLU of few pixels: PyTorch's operators, which are fast for planes of channels.

    x, y: [N, C, H, W] in channels last. weight, bias: [C].
    """

    @staticmethod
    def forward(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, slope: float
    ) -> tuple[torch.Tensor, Saved]:
        n, c, h, w = x.shape
        x = x.contiguous()
        # Groups of one channel each: its kernel is faster than that of instance normalization.
        y, mean, inverse = torch.native_group_norm(x, weight, bias, n, c, h * w, c, eps)
        F.leaky_relu_(y, slope)
        return y.contiguous(memory_format=torch.channels_last), (x, y, mean, inverse)

    @staticmethod
    def backward(dy: torch.Tensor, weight: torch.Tensor, saved: Saved, slope: float) -> tuple[torch.Tensor, ...]:
        """Gradients of x, weight and bias."""
        x, y, mean, inverse = saved
        n, c, h, w = dy.shape
        dy = torch.ops.aten.leaky_relu_backward(dy.contiguous(), y, slope, True)  # by its output
        dx, *of_parameters = torch.ops.aten.native_group_norm_backward(
            dy, x, mean, inverse, weight, n, c, h * w, c, [True, True, True]
        )
        return dx.contiguous(memory_format=torch.channels_last), *of_parameters


class _Rows:
    """The same of many pixels, in channels last throughout.

    A row of a picture, [W · C], is handled as one vector. A vector of a few channels only would leave most of a
    processor's lanes empty.
    """

    @staticmethod
    def forward(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, slope: float
    ) -> tuple[torch.Tensor, Saved]:
        n, c, h, w = x.shape
        rows = _rows(x).reshape(n, h, w * c)
        centered = rows - _spread(_sum(rows, c).div_(h * w), w)
        y = centered * centered
        inverse = _sum(y, c).div_(h * w).add_(eps).rsqrt_()  # of the standard deviation, [N, C]
        torch.addcmul(_spread(bias, w), centered, _spread(inverse * weight, w), out=y)
        F.leaky_relu_(y, slope)
        return y.view(n, h, w, c).permute(0, 3, 1, 2), (centered, y, inverse)

    @staticmethod
    def backward(dy: torch.Tensor, weight: torch.Tensor, saved: Saved, slope: float) -> tuple[torch.Tensor, ...]:
        """Gradients of x, weight and bias."""
        centered, y, inverse = saved
        n, c, h, w = dy.shape
        dy = torch.ops.aten.leaky_relu_backward(_rows(dy).reshape(n, h, w * c), y, slope, True)  # by its output
        d_bias = _sum(dy, c)  # of each picture, [N, C]
        dx = dy * centered
        d_weight = _sum(dx, c).mul_(inverse)
        # With x̂ = centered · inverse:  dx = weight · inverse · (dy − mean(dy) − x̂ · mean(dy · x̂))
        scale = inverse * weight
        of_mean, of_slope = (scale * d_bias).div_(-h * w), (scale * inverse * d_weight).div_(-h * w)
        torch.addcmul(_spread(of_mean, w), dy, _spread(scale, w), out=dx).addcmul_(centered, _spread(of_slope, w))
        return dx.view(n, h, w, c).permute(0, 3, 1, 2), d_weight.sum(0), d_bias.sum(0)


def _sum(rows: torch.Tensor, channels: int) -> torch.Tensor:
    """Sum over the pixels of each picture: [N, H, W · C] -> [N, C]."""
    return rows.sum(1).view(len(rows), -1, channels).sum(1)


def _spread(values: torch.Tensor, width: int) -> torch.Tensor:
    """Repeat values for all pixels of a row: [N, C] -> [N, 1, W · C], or [C] -> [1, W · C]."""
    return values[..., None, :].expand(*values.shape[:-1], width, -1).reshape(*values.shape[:-1], 1, -1)

"""2-D convolutions whose second derivatives are as fast as their first, for R1 and path length regularisation.

When a gradient is differentiated again, PyTorch finds the part that goes to the weight by convolving with kernels of
the picture's size, for which libraries have no fast algorithm. But it is the gradient of a convolution by its weight,
like that of the first derivative, and is computed so here. Third derivatives and all others follow. Forward-mode
differentiation and torch.func are not served while gradients are asked for, as by the native operators.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


def conv2d(
    x: torch.Tensor, w: torch.Tensor, stride: int = 1, padding: int | tuple[int, int] = 0, groups: int = 1
) -> torch.Tensor:
    """torch.nn.functional.conv2d: x [N, C, H, W], w [C', C / groups, kh, kw] -> [N, C', H', W'].

    padding: of all sides, or (above and below, left and right).
    """
    if _is_plain(x, w):
        return F.conv2d(x, w, stride=stride, padding=padding, groups=groups)
    padding = (padding, padding) if isinstance(padding, int) else tuple(padding)
    return _Convolution.apply(x, w, Geometry(stride, padding, False, (0, 0), groups))


def conv_transpose2d(x: torch.Tensor, w: torch.Tensor, stride: int = 1, groups: int = 1) -> torch.Tensor:
    """torch.nn.functional.conv_transpose2d: x [N, C, H, W], w [C, C' / groups, kh, kw] -> [N, C', H', W']."""
    if _is_plain(x, w):
        return F.conv_transpose2d(x, w, stride=stride, groups=groups)
    return _Convolution.apply(x, w, Geometry(stride, (0, 0), True, (0, 0), groups))


def _is_plain(x: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether PyTorch's own convolution serves: without gradients, while it compiles, and where it chooses types."""
    differentiated = torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
    return not differentiated or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)


class Geometry(NamedTuple):
    """What tells a convolution besides its tensors."""

    stride: int
    padding: tuple[int, int]
    transposed: bool
    output_padding: tuple[int, int]
    groups: int

    @property
    def arguments(self) -> tuple:
        """As torch.convolution takes them, after the bias."""
        stride, dilation = [self.stride] * 2, [1, 1]
        return stride, self.padding, dilation, self.transposed, self.output_padding, self.groups

    def adjoint(self, x: torch.Tensor, dy: torch.Tensor, w: torch.Tensor) -> Geometry:
        """Of the convolution of dy with the same weight that is the gradient of x."""
        output_padding = (0, 0)
        if not self.transposed:
            output_padding = tuple(
                x.shape[i] - ((dy.shape[i] - 1) * self.stride - 2 * self.padding[i - 2] + w.shape[i]) for i in (2, 3)
            )
        return self._replace(transposed=not self.transposed, output_padding=output_padding)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, geometry):
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return torch.convolution(x, w, None, *geometry.arguments)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = _Convolution.apply(dy, w, ctx.geometry.adjoint(x, dy, w))
        if ctx.needs_input_grad[1]:
            dw = _WeightGradient.apply(x, dy, w.detach(), ctx.geometry)
        return dx, dw, None


class _WeightGradient(torch.autograd.Function):
    """The gradient of a convolution by its weight, whose value it does not depend on: w tells shape and layout."""

    @staticmethod
    def forward(ctx, x, dy, w, geometry):
        ctx.save_for_backward(x, dy)
        ctx.geometry = geometry
        only_weight = [False, True, False]
        return torch.ops.aten.convolution_backward(dy, x, w, None, *geometry.arguments, only_weight)[1]

    @staticmethod
    def backward(ctx, ddw):
        x, dy = ctx.saved_tensors
        dx = ddy = None
        if ctx.needs_input_grad[0]:
            dx = _Convolution.apply(dy, ddw, ctx.geometry.adjoint(x, dy, ddw))
        if ctx.needs_input_grad[1]:
            ddy = _Convolution.apply(x, ddw, ctx.geometry)
        return dx, ddy, None, None

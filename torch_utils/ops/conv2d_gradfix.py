"""2-D convolutions whose second derivatives are as fast as their first, for R1 and path length regularization.

On CPUs, 3×3 convolutions of many pixels are native, and about twice as fast as PyTorch's: see csrc/cpu/winograd.h.

When a gradient is differentiated again, PyTorch finds the part that goes to the weight by convolving with kernels of
the picture's size. Libraries have no fast algorithm for these. But that part is the gradient of a convolution by its
weight, as in the first derivative, and is computed as such here. Third and higher derivatives follow by themselves.
Forward-mode differentiation and torch.func do not work, as with the native operators.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F

from torch_utils.ops import build, native
from torch_utils.ops.registered import CONV3X3, CONV3X3_WEIGHT_GRADIENT


def conv2d(
    x: torch.Tensor, w: torch.Tensor, stride: int = 1, padding: int | tuple[int, int] = 0, groups: int = 1
) -> torch.Tensor:
    """torch.nn.functional.conv2d: x [N, C, H, W], w [C', C / groups, kh, kw] -> [N, C', H', W'].

    padding: of all sides, or (above and below, left and right).
    """
    pair = (padding, padding) if isinstance(padding, int) else padding
    y = _convolve_here(x, w, Geometry(stride, pair, False, (0, 0), groups))
    return F.conv2d(x, w, stride=stride, padding=padding, groups=groups) if y is None else y


def conv_transpose2d(x: torch.Tensor, w: torch.Tensor, stride: int = 1, groups: int = 1) -> torch.Tensor:
    """torch.nn.functional.conv_transpose2d: x [N, C, H, W], w [C, C' / groups, kh, kw] -> [N, C', H', W']."""
    y = _convolve_here(x, w, Geometry(stride, (0, 0), True, (0, 0), groups))
    return F.conv_transpose2d(x, w, stride=stride, groups=groups) if y is None else y


def _convolve_here(x: torch.Tensor, w: torch.Tensor, geometry: Geometry) -> torch.Tensor | None:
    """The convolution, or None where PyTorch's own serves.

    It does while PyTorch compiles, under autocast, and without gradients unless the native convolution is faster.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return None
    if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
        return _Convolution.apply(x, w, geometry)
    return CONV3X3(x, w, geometry.transposed) if _is_native(x, w, geometry) else None


class Geometry(NamedTuple):
    """What a convolution is told besides its tensors."""

    stride: int  # along both axes
    padding: tuple[int, int]  # above and below, left and right
    transposed: bool
    output_padding: tuple[int, int]  # rows below and columns right, of a transposed convolution
    groups: int

    @property
    def arguments(self) -> tuple:
        """The arguments that torch.convolution takes after the bias."""
        stride, dilation = [self.stride] * 2, [1, 1]
        return stride, self.padding, dilation, self.transposed, self.output_padding, self.groups

    def adjoint(self, x: torch.Tensor, dy: torch.Tensor, w: torch.Tensor) -> Geometry:
        """The geometry of the convolution that makes the gradient of x from dy and the same weight."""
        if self.transposed:
            return self._replace(transposed=False, output_padding=(0, 0))
        # Above stride 1, several sizes of x give one size of dy. The transposed convolution returns the least of them.
        rows, columns = (
            x.shape[i] - ((dy.shape[i] - 1) * self.stride - 2 * self.padding[i - 2] + w.shape[i]) for i in (2, 3)
        )
        return self._replace(transposed=True, output_padding=(rows, columns))


# Where the native convolution was faster than PyTorch's. Few pixels are not worth the transformation of the weight.
MULTIPLE = 16  # numbers of channels are multiples of it
FEWEST_PIXELS, MOST_CHANNELS = 1024, 8 * MULTIPLE  # pixels of the whole minibatch
PROCESSORS = ("AVX2", "AVX512")


@functools.cache
def _is_measured() -> bool:
    """Whether the native convolution was measured on such processors, and is built to run in several threads."""
    return torch.backends.cpu.get_cpu_capability() in PROCESSORS and bool(build.OPENMP)


def _is_native(x: torch.Tensor, w: torch.Tensor, geometry: Geometry) -> bool:
    """Whether the native 3×3 convolution serves, and is faster than PyTorch's."""
    first, second, *taps = w.shape
    return (
        taps == [3, 3]
        and geometry == (1, (1, 1), geometry.transposed, (0, 0), 1)
        and 0 < first <= MOST_CHANNELS
        and 0 < second <= MOST_CHANNELS
        and first % MULTIPLE == second % MULTIPLE == 0
        and x.ndim == 4
        and x.numel() >= FEWEST_PIXELS * x.shape[1]
        and x.is_cpu
        and w.is_cpu
        and x.dtype == w.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and _is_measured()
        and native.serve(x)
    )


def _convolve(x: torch.Tensor, w: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    if _is_native(x, w, geometry):
        return CONV3X3(x, w, geometry.transposed)
    return torch.convolution(x, w, None, *geometry.arguments)


def _gradients(
    x: torch.Tensor, dy: torch.Tensor, w: torch.Tensor, geometry: Geometry, wanted: tuple[bool, bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of x and w, as far as they are wanted. Only the shape and layout of w count for its own."""
    if not _is_native(x, w, geometry):
        return torch.ops.aten.convolution_backward(dy, x, w, None, *geometry.arguments, [*wanted, False])[:2]
    dx = dw = None
    if wanted[0]:
        dx = CONV3X3(dy, w, not geometry.transposed)
    if wanted[1]:
        dw = CONV3X3_WEIGHT_GRADIENT(*((dy, x) if geometry.transposed else (x, dy)), w)
    return dx, dw


class _Convolution(torch.autograd.Function):
    """A convolution, plain or transposed."""

    @staticmethod
    def forward(ctx, x, w, geometry):
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return _convolve(x, w, geometry)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        if not torch.is_grad_enabled():
            return *_gradients(x, dy, w, ctx.geometry, wanted), None
        dx = dw = None
        if wanted[0]:
            dx = _Convolution.apply(dy, w, ctx.geometry.adjoint(x, dy, w))
        if wanted[1]:
            dw = _WeightGradient.apply(x, dy, w.detach(), ctx.geometry)
        return dx, dw, None


class _WeightGradient(torch.autograd.Function):
    """The gradient of a convolution by its weight."""

    @staticmethod
    def forward(ctx, x, dy, w, geometry):
        ctx.save_for_backward(x, dy)
        ctx.geometry = geometry
        return _gradients(x, dy, w, geometry, (False, True))[1]

    @staticmethod
    def backward(ctx, ddw):
        x, dy = ctx.saved_tensors
        dx = ddy = None
        if ctx.needs_input_grad[0]:
            dx = _Convolution.apply(dy, ddw, ctx.geometry.adjoint(x, dy, ddw))
        if ctx.needs_input_grad[1]:
            ddy = _Convolution.apply(x, ddw, ctx.geometry)
        return dx, ddy, None, None

"""2-D convolutions with fast second derivatives, for R1 and path length regularization.

When PyTorch differentiates a gradient again, it computes the weight's part as a convolution with kernels as large as
the picture. Libraries have no fast algorithm for that. But this part is the gradient of a convolution by its weight, as
in the first derivative, and is computed in that way here. Higher derivatives follow from the same rules. Forward-mode
differentiation and torch.func are not supported, neither here nor by the native operators.

On CPUs, 3×3 convolutions of many pixels are native, and about twice as fast as PyTorch's: see csrc/cpu/winograd.h.
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
    """Compute torch.nn.functional.conv2d: x [N, C, H, W], w [C', C / groups, kh, kw] -> [N, C', H', W'].

    padding: for all sides, or (above and below, left and right).
    """
    pair = (padding, padding) if isinstance(padding, int) else padding
    y = _convolve_here(x, w, Geometry(stride, pair, False, (0, 0), groups))
    return F.conv2d(x, w, stride=stride, padding=padding, groups=groups) if y is None else y


def conv_transpose2d(x: torch.Tensor, w: torch.Tensor, stride: int = 1, groups: int = 1) -> torch.Tensor:
    """Compute torch.nn.functional.conv_transpose2d: x [N, C, H, W], w [C, C' / groups, kh, kw] -> [N, C', H', W']."""
    y = _convolve_here(x, w, Geometry(stride, (0, 0), True, (0, 0), groups))
    return F.conv_transpose2d(x, w, stride=stride, groups=groups) if y is None else y


def _convolve_here(x: torch.Tensor, w: torch.Tensor, geometry: Geometry) -> torch.Tensor | None:
    """Convolve with the operators of this file. Returns None if PyTorch's own convolution is to be used."""
    # torch.compile and autocast need operators that they know.
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return None
    if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
        return _Convolution.apply(x, w, geometry)
    # Without gradients, only the native convolution is an advantage.
    return CONV3X3(x, w, geometry.transposed) if _is_native(x, w, geometry) else None


class Geometry(NamedTuple):
    """Settings of a convolution."""

    stride: int  # along both axes
    padding: tuple[int, int]  # above and below, left and right
    transposed: bool
    output_padding: tuple[int, int]  # rows and columns that a transposed convolution adds below and on the right
    groups: int

    @property
    def arguments(self) -> tuple:
        """Arguments of torch.convolution after the bias."""
        stride, dilation = [self.stride] * 2, [1, 1]
        return stride, self.padding, dilation, self.transposed, self.output_padding, self.groups

    def adjoint(self, x: torch.Tensor, dy: torch.Tensor, w: torch.Tensor) -> Geometry:
        """Settings of the convolution of dy with w that computes the gradient of x."""
        if self.transposed:
            return self._replace(transposed=False, output_padding=(0, 0))
        # With a stride, x of several sizes give dy of one size. The transposed convolution returns the smallest size,
        # so add the missing rows and columns.
        rows, columns = (
            x.shape[i] - ((dy.shape[i] - 1) * self.stride - 2 * self.padding[i - 2] + w.shape[i]) for i in (2, 3)
        )
        return self._replace(transposed=True, output_padding=(rows, columns))


# Cases in which the native convolution was measured to be faster than PyTorch's. It transforms the weight first, which
# takes too long for few pixels.
MULTIPLE = 16  # numbers of channels must be multiples of this
FEWEST_PIXELS, MOST_CHANNELS = 1024, 8 * MULTIPLE  # pixels of the whole minibatch
PROCESSORS = ("AVX2", "AVX512")


@functools.cache
def _is_measured() -> bool:
    """Return whether the native convolution was measured on such a processor, and is built for several threads."""
    return torch.backends.cpu.get_cpu_capability() in PROCESSORS and bool(build.OPENMP)


def _is_native(x: torch.Tensor, w: torch.Tensor, geometry: Geometry, fewest_pixels: int = FEWEST_PIXELS) -> bool:
    """Return whether the native 3×3 convolution can compute this case, and is faster than PyTorch's."""
    first, second, *taps = w.shape
    return (
        taps == [3, 3]
        and geometry == (1, (1, 1), geometry.transposed, (0, 0), 1)
        and 0 < first <= MOST_CHANNELS
        and 0 < second <= MOST_CHANNELS
        and first % MULTIPLE == second % MULTIPLE == 0
        and x.ndim == 4
        and x.numel() >= fewest_pixels * x.shape[1]
        and x.is_cpu
        and w.is_cpu
        and x.dtype == w.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and _is_measured()
        and native.serve(x)
    )


def convolve(x: torch.Tensor, w: torch.Tensor, geometry: Geometry, fewest_pixels: int = FEWEST_PIXELS) -> torch.Tensor:
    """Convolve with the faster of the native and PyTorch's operator. Gradients don't go through it."""
    if _is_native(x, w, geometry, fewest_pixels):
        return CONV3X3(x, w, geometry.transposed)
    return torch.convolution(x, w, None, *geometry.arguments)


def gradients(
    x: torch.Tensor,
    dy: torch.Tensor,
    w: torch.Tensor,
    geometry: Geometry,
    wanted: tuple[bool, bool],
    fewest_pixels: int = FEWEST_PIXELS,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Compute the gradients of x and w. wanted: which of the two; the other one is None.

    The gradient of w depends on the shape and layout of w, but not on its values.
    """
    if not _is_native(x, w, geometry, fewest_pixels):
        # The last entry of the mask is for a bias, which does not exist.
        return torch.ops.aten.convolution_backward(dy, x, w, None, *geometry.arguments, [*wanted, False])[:2]
    dx = dw = None
    if wanted[0]:
        dx = CONV3X3(dy, w, not geometry.transposed)
    if wanted[1]:
        # A transposed convolution swaps the roles of input and output.
        dw = CONV3X3_WEIGHT_GRADIENT(*((dy, x) if geometry.transposed else (x, dy)), w)
    return dx, dw


class _Convolution(torch.autograd.Function):
    """A convolution, plain or transposed.

    Its gradients are made of the two functions of this file, so they can be differentiated again.
    """

    @staticmethod
    def forward(ctx, x, w, geometry):
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return convolve(x, w, geometry)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        # Gradients are enabled here only if create_graph asks for second derivatives. Otherwise one call does it all.
        if not torch.is_grad_enabled():
            return *gradients(x, dy, w, ctx.geometry, wanted), None
        dx = dw = None
        if wanted[0]:
            dx = _Convolution.apply(dy, w, ctx.geometry.adjoint(x, dy, w))
        if wanted[1]:
            dw = _WeightGradient.apply(x, dy, w.detach(), ctx.geometry)
        return dx, dw, None


class _WeightGradient(torch.autograd.Function):
    """Gradient of a convolution by its weight. It is linear in x and in dy, so its own gradients are convolutions."""

    @staticmethod
    def forward(ctx, x, dy, w, geometry):
        ctx.save_for_backward(x, dy)
        ctx.geometry = geometry
        return gradients(x, dy, w, geometry, (False, True))[1]

    @staticmethod
    def backward(ctx, ddw):
        x, dy = ctx.saved_tensors
        dx = ddy = None
        if ctx.needs_input_grad[0]:
            dx = _Convolution.apply(dy, ddw, ctx.geometry.adjoint(x, dy, ddw))
        if ctx.needs_input_grad[1]:
            ddy = _Convolution.apply(x, ddw, ctx.geometry)
        return dx, ddy, None, None

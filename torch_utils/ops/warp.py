"""Pictures moved by affine maps without loss of their fine structure, natively on CPUs.

csrc/operators.h has the definition: reflections, twice the resolution, bilinear samples, the usual resolution. It is a
linear map of the picture, y = A x. Its gradient is the adjoint map, dx = Aᵀ dy, whose own gradient is A again.
"""

from __future__ import annotations

import torch

from torch_utils.ops import native
from torch_utils.ops.registered import WARP


def serves(x: torch.Tensor) -> bool:
    """Return whether pictures can be warped: on CPUs with native operators, and not where torch.compile traces."""
    return x.is_cpu and native.serve(x) and not torch.compiler.is_compiling()


def warp(x: torch.Tensor, maps: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Move pictures, [N, C, W, W]. Those whose map is the identity stay as they are.

    Differentiable any number of times, by the pictures.
    maps: from pixels of a result to pixels of its picture, both as columns (x, y, 1) that count from 0, [N, 2, 3].
    taps: low-pass filter of a wavelet with a sum of 1, [12]; the sixth tap stays in place. Both float64, on the CPU.
    Raises ValueError if arguments don't fit.
    """
    return _Warp.apply(x, maps, taps, False)


class _Warp(torch.autograd.Function):
    """y = A x, or y = Aᵀ x."""

    @staticmethod
    def forward(ctx, x, maps, taps, adjoint):
        ctx.save_for_backward(maps, taps)
        ctx.adjoint = adjoint
        return WARP(x, maps, taps, adjoint)

    @staticmethod
    def backward(ctx, dy):
        return _Warp.apply(dy, *ctx.saved_tensors, not ctx.adjoint), None, None, None

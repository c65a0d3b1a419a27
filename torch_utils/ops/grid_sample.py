"""Bilinear sampling of pictures, with derivatives of all orders by the picture.

PyTorch long had no second derivative of grid_sample, and what it has now is that of the grid too. Here the grid takes
no gradient. Then sampling is a linear map of the picture, y = S x. Its gradient is the adjoint map, dx = Sᵀ dy, whose
own gradient is sampling again.
"""

from __future__ import annotations

import torch

from torch_utils.ops.argument_checks import require_device, require_floating

_SETTINGS = (0, 0, False)  # of PyTorch's operators: bilinear, zeros outside, edges of the picture at −1 and 1


def grid_sample(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Sample pictures at the positions of a grid, bilinearly; outside they are 0.

    x: [N, C, H, W]. grid: positions (x, y) in which the left and upper edges of a picture are at −1, the others at 1,
    [N, H', W', 2], of the type of x. Returns [N, C, H', W']. Differentiable any number of times by x.
    Raises ValueError if arguments don't fit, or the grid asks for a gradient.
    """
    require_floating(x)
    require_device(grid, "the grid", x)
    if x.ndim != 4 or grid.ndim != 4 or grid.shape[0] != x.shape[0] or grid.shape[3] != 2:
        shapes = f"{list(x.shape)} and {list(grid.shape)}"
        raise ValueError(f"expected pictures [N, C, H, W] and a grid [N, H', W', 2], found {shapes}")
    if grid.dtype != x.dtype:
        raise ValueError(f"the grid is of {grid.dtype}, x of {x.dtype}; expected the same type")
    if grid.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"the grid {list(grid.shape)} takes no gradient; detach it")
    return _Sampling.apply(x, grid)


class _Sampling(torch.autograd.Function):
    """y = S x."""

    @staticmethod
    def forward(ctx, x, grid):
        ctx.save_for_backward(grid)
        ctx.size = x.shape[2:]
        return torch.ops.aten.grid_sampler_2d(x, grid, *_SETTINGS)

    @staticmethod
    def backward(ctx, dy):
        (grid,) = ctx.saved_tensors
        return _Adjoint.apply(dy, grid, ctx.size), None


class _Adjoint(torch.autograd.Function):
    """x = Sᵀ y."""

    @staticmethod
    def forward(ctx, y, grid, size):
        ctx.save_for_backward(grid)
        # PyTorch's operator asks for the picture, of which only the gradient of the grid depends. An expanded zero
        # stands for it, which takes no memory.
        picture = y.new_zeros([]).expand(*y.shape[:2], *size)
        return torch.ops.aten.grid_sampler_2d_backward(y, picture, grid, *_SETTINGS, [True, False])[0]

    @staticmethod
    def backward(ctx, dx):
        (grid,) = ctx.saved_tensors
        return _Sampling.apply(dx, grid), None, None

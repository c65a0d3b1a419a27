"""Registration of the native operators in PyTorch: schemas, and output shapes for torch.compile and torch.export.

The libraries loaded by `native` add kernels (csrc/cpu, csrc/cuda) and derivatives (csrc/autograd.cpp) under these
names. csrc/operators.h has the equations.
"""

from __future__ import annotations

import torch

from torch_utils.ops.reference import ACTIVATIONS, compute_type

NAMESPACE = "stylegan2_mr"
OPERATORS = getattr(torch.ops, NAMESPACE)
NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}  # activations as csrc knows them

_OPERANDS = "Tensor x, Tensor? scale, Tensor? noise, Tensor? strength, Tensor? bias"
_SETTINGS = "int act, float alpha, float gain, float limit"
_library = torch.library.Library(NAMESPACE, "DEF")
_library.define(f"tail({_OPERANDS}, {_SETTINGS}) -> Tensor")
# output_mask: which of the gradients of scale, strength and bias to compute. The others are None, although the schema
# says Tensor; PyTorch's convolution_backward does the same.
_library.define(
    f"tail_backward(Tensor dy, {_OPERANDS}, {_SETTINGS}, bool x_is_output, bool[3] output_mask)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    f"tail_backward2(Tensor? v, Tensor? w_scale, Tensor? w_strength, Tensor? w_bias, Tensor dy, {_OPERANDS},"
    f" {_SETTINGS}, bool want_x, bool[3] output_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "upfirdn2d(Tensor x, Tensor f, int up_x, int up_y, int down_x, int down_y,"
    " SymInt pad_x0, SymInt pad_x1, SymInt pad_y0, SymInt pad_y1, bool flip, float gain) -> Tensor"
)
# CPU and float32 only, with stride 1 and padding 1. transposed: w is [C, C', 3, 3], else [C', C, 3, 3].
# csrc/cpu/winograd.h has the algorithm, and conv2d_gradfix.py the derivatives.
_library.define("conv3x3(Tensor x, Tensor w, bool transposed) -> Tensor")
_library.define("conv3x3_weight_gradient(Tensor x, Tensor dy, Tensor w) -> Tensor")
# CPU only. csrc/operators.h has the definition, and warp.py the derivatives.
_library.define("warp(Tensor x, Tensor maps, Tensor taps, bool adjoint) -> Tensor")


# ---- Shapes ----------------------------------------------------------------------------------------------------


def _layout(x: torch.Tensor) -> torch.memory_format:
    """Memory format of a result: channels_last only if x has no other, as in csrc/binding.h (is_channels_last)."""
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _empty_like(x: torch.Tensor) -> torch.Tensor:
    """A result with the shape and layout of x."""
    return torch.empty_like(x, memory_format=_layout(x))


def _empty_gradients(x: torch.Tensor, wanted: list[bool]) -> list[torch.Tensor | None]:
    """Gradients of scale, strength and bias; None for those that are not wanted."""
    shapes = [x.shape[:2], [], x.shape[1:2]]  # [N, C], [], [C]
    dtype = compute_type(x)
    return [x.new_empty(shape, dtype=dtype) if want else None for shape, want in zip(shapes, wanted, strict=True)]


# A "fake" of an operator returns empty results of the right shape, type and layout. PyTorch finds it by the name in the
# decorator, so the function needs none.
@torch.library.register_fake(f"{NAMESPACE}::tail", lib=_library)
def _(x, scale, noise, strength, bias, act, alpha, gain, limit):
    return _empty_like(x)


@torch.library.register_fake(f"{NAMESPACE}::tail_backward", lib=_library)
def _(dy, x, scale, noise, strength, bias, act, alpha, gain, limit, x_is_output, output_mask):
    return _empty_like(x), *_empty_gradients(x, output_mask)


@torch.library.register_fake(f"{NAMESPACE}::tail_backward2", lib=_library)
def _(
    v, w_scale, w_strength, w_bias, dy, x, scale, noise, strength, bias, act, alpha, gain, limit, want_x, output_mask
):
    d_x = _empty_like(x) if want_x else None
    return _empty_like(x), d_x, *_empty_gradients(x, output_mask)


@torch.library.register_fake(f"{NAMESPACE}::upfirdn2d", lib=_library)
def _(x, f, up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1, flip, gain):
    height = (x.shape[2] * up_y + pad_y0 + pad_y1 - f.shape[0]) // down_y + 1
    width = (x.shape[3] * up_x + pad_x0 + pad_x1 - f.shape[-1]) // down_x + 1
    return torch.empty(
        [x.shape[0], x.shape[1], height, width], dtype=x.dtype, device=x.device, memory_format=_layout(x)
    )


@torch.library.register_fake(f"{NAMESPACE}::conv3x3", lib=_library)
def _(x, w, transposed):
    shape = [x.shape[0], w.shape[1 if transposed else 0], *x.shape[2:]]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.register_fake(f"{NAMESPACE}::conv3x3_weight_gradient", lib=_library)
def _(x, dy, w):
    return torch.empty_like(w)


@torch.library.register_fake(f"{NAMESPACE}::warp", lib=_library)
def _(x, maps, taps, adjoint):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


# Looked up only once, as a look-up is slow compared with a call of a few microseconds.
TAIL, UPFIRDN2D = OPERATORS.tail.default, OPERATORS.upfirdn2d.default
CONV3X3, CONV3X3_WEIGHT_GRADIENT = OPERATORS.conv3x3.default, OPERATORS.conv3x3_weight_gradient.default
WARP = OPERATORS.warp.default

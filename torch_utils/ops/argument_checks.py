"""Checks of operators' arguments, the same for plain PyTorch and native code. They raise ValueError."""

from __future__ import annotations

import torch

_FLOATING = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def require_floating(x: torch.Tensor, name: str = "x") -> None:
    """Raise ValueError unless x has a floating-point type."""
    if x.dtype not in _FLOATING:
        raise ValueError(f"{name} {list(x.shape)} is {x.dtype}; expected float16, bfloat16, float32 or float64")


def require_operand(t: torch.Tensor | None, name: str, x: torch.Tensor, *shapes: tuple[int, ...]) -> None:
    """Raise ValueError unless t is None, or floating-point, of one of the shapes, and on the device of x."""
    if t is None:
        return
    # Test here, and call a function only if the test fails: a call takes as long as the test.
    if t.dtype not in _FLOATING:
        require_floating(t, name)
    if t.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name} {list(t.shape)} does not fit x {list(x.shape)}; expected {expected}")
    if t.device != x.device:
        require_device(t, name, x)


def require_device(t: torch.Tensor, name: str, x: torch.Tensor) -> None:
    """Raise ValueError unless t is on the device of x."""
    if t.device != x.device:
        raise ValueError(f"{name} {list(t.shape)} is on {t.device}, but x {list(x.shape)} on {x.device}")

"""What operators ask of their arguments, whichever face serves: ValueErrors that show what was given."""

from __future__ import annotations

import torch

_FLOATING = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def require_floating(x: torch.Tensor, name: str = "x") -> None:
    if x.dtype not in _FLOATING:
        raise ValueError(f"{name} {list(x.shape)} is {x.dtype}; expected float16, bfloat16, float32 or float64")


def require_operand(t: torch.Tensor | None, name: str, x: torch.Tensor, *shapes: tuple[int, ...]) -> None:
    """t, if given, is floating-point, of one of the shapes, and on the device of x."""
    if t is None:
        return
    # Calls are for what is wrong only: each takes as long as such a look.
    if t.dtype not in _FLOATING:
        require_floating(t, name)
    if t.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name} {list(t.shape)} does not fit x {list(x.shape)}; expected {expected}")
    if t.device != x.device:
        require_device(t, name, x)


def require_device(t: torch.Tensor, name: str, x: torch.Tensor) -> None:
    if t.device != x.device:
        raise ValueError(f"{name} {list(t.shape)} is on {t.device}, but x {list(x.shape)} on {x.device}")

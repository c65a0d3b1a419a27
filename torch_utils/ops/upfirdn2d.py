"""Upsampling, padding, filtering and downsampling of pictures."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch

from torch_utils.ops import native, reference
from torch_utils.ops.argument_checks import require_device, require_floating
from torch_utils.ops.registered import UPFIRDN2D

LARGEST_FILTER = 32  # taps along an axis; larger filters are left to the reference


def setup_filter(taps: Sequence | torch.Tensor) -> torch.Tensor:
    """Make a filter for upfirdn2d, with a sum of 1, in torch's default type.

    taps: a matrix, or a vector for its outer product with itself. A vector of 8 taps or more is not multiplied out,
    because filtering in two passes is then faster. Raises ValueError for other shapes.
    """
    f = torch.as_tensor(taps, dtype=torch.get_default_dtype())
    filter_size(f)  # raises ValueError
    if f.ndim == 1 and f.numel() < 8:
        f = f.outer(f)
    return f / f.sum()


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> torch.Tensor:
    """Insert zeros between samples, pad, convolve with f, and keep every down-th sample.

    x: [N, C, H, W]. f: from setup_filter; None is the identity. up, down: a number or (x, y).
    padding: a number, (x, y) or (x before, x after, y before, y after), in samples of the upsampled picture; negative
    numbers crop. flip_filter: correlate instead of convolving. gain: factor of the output.
    Returns [N, C, H', W'] with H' = (H·up + padding − fh) // down + 1. Differentiable twice, except by the filter.
    Raises ValueError if arguments don't fit, or nothing would be left of the picture.
    """
    return _resample(x, f, _pair(up, "up"), _pair(down, "down"), parse_padding(padding), flip_filter, gain)


def _resample(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip_filter: bool,
    gain: float,
) -> torch.Tensor:
    """Compute upfirdn2d. up, down: (x, y). padding: (x before, x after, y before, y after)."""
    require_floating(x)
    shape = x.shape
    if len(shape) != 4:
        raise ValueError(f"expected pictures [N, C, H, W], found the shape {list(shape)}")
    fw, fh = filter_size(f)
    if f is not None:
        _require_filter(f, x)
    # Size of the padded picture.
    width = shape[3] * up[0] + padding[0] + padding[1]
    height = shape[2] * up[1] + padding[2] + padding[3]
    if width < fw or height < fh:
        raise ValueError(
            f"padding {list(padding)} leaves {height}×{width} of an input {list(shape)}, "
            f"less than the filter's {fh}×{fw}"
        )
    if fw > LARGEST_FILTER or fh > LARGEST_FILTER or not native.serve(x):
        return reference.upfirdn2d(x, f, up, down, padding, flip_filter, gain)
    compute = reference.compute_type(x)
    if f is None:
        f = torch.ones([1, 1], dtype=compute, device=x.device)
    elif f.dtype != compute:
        f = f.to(compute)
    return UPFIRDN2D(x, f, *up, *down, *padding, flip_filter, gain)


def _require_filter(f: torch.Tensor, x: torch.Tensor) -> None:
    """Raise ValueError unless the filter is floating-point, on the device of x, and without gradient."""
    require_floating(f, "the filter")
    require_device(f, "the filter", x)
    if f.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"the filter {list(f.shape)} takes no gradient; detach it")


def filter2d(x: torch.Tensor, f: torch.Tensor | None) -> torch.Tensor:
    """Filter pictures and keep their size."""
    fw, fh = filter_size(f)
    padding = (fw // 2, (fw - 1) // 2, fh // 2, (fh - 1) // 2)
    return _resample(x, f, (1, 1), (1, 1), padding, False, 1)


def upsample2d(x: torch.Tensor, f: torch.Tensor | None, up: int | Sequence[int] = 2) -> torch.Tensor:
    """Enlarge pictures by the factor `up`, and keep their brightness."""
    up_xy = _pair(up, "up")
    # Inserted zeros lower the mean; the gain makes up for them.
    return _resample(x, f, up_xy, (1, 1), upsampling_padding(f, up_xy), False, up_xy[0] * up_xy[1])


def downsample2d(x: torch.Tensor, f: torch.Tensor | None, down: int | Sequence[int] = 2) -> torch.Tensor:
    """Shrink pictures by the factor `down`, and keep their brightness."""
    down_xy = _pair(down, "down")
    return _resample(x, f, (1, 1), down_xy, downsampling_padding(f, down_xy), False, 1)


def upsampling_padding(f: torch.Tensor | None, up: tuple[int, int]) -> tuple[int, int, int, int]:
    """Padding with which upsampling returns exactly `up` times the size, and the picture stays centered."""
    fw, fh = filter_size(f)
    return (fw + up[0] - 1) // 2, (fw - up[0]) // 2, (fh + up[1] - 1) // 2, (fh - up[1]) // 2


def downsampling_padding(f: torch.Tensor | None, down: tuple[int, int]) -> tuple[int, int, int, int]:
    """Padding with which downsampling returns exactly 1/`down` of the size, and the picture stays centered."""
    fw, fh = filter_size(f)
    return (fw - down[0] + 1) // 2, (fw - down[0]) // 2, (fh - down[1] + 1) // 2, (fh - down[1]) // 2


def filter_size(f: torch.Tensor | None) -> tuple[int, int]:
    """Width and height of a filter in taps. Raises ValueError if it is neither a vector nor a matrix."""
    if f is None:
        return 1, 1
    shape = f.shape
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"a filter is a vector or a matrix; found the shape {list(shape)}")
    return shape[-1], shape[0]  # the same number for 1-D taps


def parse_padding(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """Expand a number or (x, y) to (x before, x after, y before, y after). Raises ValueError for other forms."""
    p = _whole_numbers(padding)
    if len(p) == 1:
        p = p * 4
    if len(p) == 2:
        p = (p[0], p[0], p[1], p[1])
    if len(p) != 4:
        raise ValueError(f"padding {padding!r}: expected one, two or four whole numbers")
    return p


def _pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """Expand a number to (x, y). Raises ValueError for other forms and for numbers below 1."""
    pair = _whole_numbers(value)
    pair = pair * 2 if len(pair) == 1 else pair
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name} {value!r}: expected one or two whole numbers, at least 1")
    return pair


def _whole_numbers(value: int | Sequence[int]) -> tuple[int, ...]:
    """Return the numbers in `value`, or an empty tuple if one of them is not whole."""
    if type(value) is int:  # the usual case, made fast: a call of an operator takes microseconds
        return (value,)
    try:
        return tuple(map(operator.index, value if isinstance(value, Sequence) else [value]))
    except TypeError:
        return ()

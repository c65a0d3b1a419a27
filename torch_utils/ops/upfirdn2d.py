"""Upsample, pad, filter and downsample pictures."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch

from torch_utils.ops import native, reference
from torch_utils.ops.checks import require_device, require_floating
from torch_utils.ops.registered import UPFIRDN2D

LARGEST_FILTER = 32  # taps along an axis, for the native operators


def setup_filter(
    f: Sequence | torch.Tensor | None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> torch.Tensor:
    """Filter taps as upfirdn2d takes them: float32, [taps] if separable, else [fh, fw].

    f: 1-D or 2-D taps; None is the identity. normalize: divide by the sum. gain: of the picture as a whole.
    separable: keep 1-D taps 1-D; None does so from 8 taps on, where two passes are faster than one.
    """
    f = torch.as_tensor(1 if f is None else f, dtype=torch.float32)
    if f.ndim == 0:
        f = f.reshape(1)
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(f"a filter is a vector or a matrix; found the shape {list(f.shape)}")
    if separable is None:
        separable = f.ndim == 1 and f.numel() >= 8
    if separable and f.ndim == 2:
        raise ValueError(f"a separable filter is given by its 1-D taps; found the shape {list(f.shape)}")
    if f.ndim == 1 and not separable:
        f = f.outer(f)
    if f.ndim == 1 and gain < 0:
        raise ValueError(f"gain {gain} has no square root for the two passes of a separable filter; give 0 or more")
    if normalize:
        f = f / f.sum()
    if flip_filter:
        f = f.flip(list(range(f.ndim)))
    return f * gain ** (f.ndim / 2)


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> torch.Tensor:
    """Upsample by inserting zeros, pad, convolve with f, and keep every down-th sample.

    x: [N, C, H, W]. f: from setup_filter; None is the identity. up, down: a number or (x, y). padding: a number,
    (x, y) or (x before, x after, y before, y after), in samples of the upsampled picture; negative numbers crop.
    flip_filter: correlate instead of convolving. gain: of the output. Returns [N, C, H', W'], differentiable twice.
    The filter takes no gradient. Raises ValueError for what doesn't fit, and where nothing is left of the picture.
    """
    return _resample(x, f, _pair(up, "up"), _pair(down, "down"), parse_padding(padding), flip_filter, gain)


def _resample(x, f, up, down, padding, flip_filter, gain) -> torch.Tensor:
    """upfirdn2d of factors and padding in their full form."""
    require_floating(x)
    shape = x.shape
    if len(shape) != 4:
        raise ValueError(f"expected pictures [N, C, H, W], found the shape {list(shape)}")
    fw, fh = filter_size(f)
    if f is not None:
        _require_filter(f, x)
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
    require_floating(f, "the filter")
    require_device(f, "the filter", x)
    if f.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"the filter {list(f.shape)} takes no gradient; detach it")


def filter2d(x, f, padding: int | Sequence[int] = 0, flip_filter: bool = False, gain: float = 1) -> torch.Tensor:
    """Filter pictures, keeping their size; `padding` is added to what that takes."""
    fw, fh = filter_size(f)
    p = parse_padding(padding)
    p = (p[0] + fw // 2, p[1] + (fw - 1) // 2, p[2] + fh // 2, p[3] + (fh - 1) // 2)
    return _resample(x, f, (1, 1), (1, 1), p, flip_filter, gain)


def upsample2d(
    x, f, up: int | Sequence[int] = 2, padding: int | Sequence[int] = 0, flip_filter: bool = False, gain: float = 1
) -> torch.Tensor:
    """Enlarge pictures `up` times, keeping their brightness; `padding` is added to what that takes."""
    up = _pair(up, "up")
    p = tuple(map(operator.add, parse_padding(padding), upsampling_padding(f, up)))
    return _resample(x, f, up, (1, 1), p, flip_filter, gain * up[0] * up[1])


def downsample2d(
    x, f, down: int | Sequence[int] = 2, padding: int | Sequence[int] = 0, flip_filter: bool = False, gain: float = 1
) -> torch.Tensor:
    """Reduce pictures `down` times, keeping their brightness; `padding` is added to what that takes."""
    down = _pair(down, "down")
    p = tuple(map(operator.add, parse_padding(padding), downsampling_padding(f, down)))
    return _resample(x, f, (1, 1), down, p, flip_filter, gain)


def upsampling_padding(f: torch.Tensor | None, up: tuple[int, int]) -> tuple[int, int, int, int]:
    """The padding with which ×up upsampling returns exactly `up` times the size, centred."""
    fw, fh = filter_size(f)
    return (fw + up[0] - 1) // 2, (fw - up[0]) // 2, (fh + up[1] - 1) // 2, (fh - up[1]) // 2


def downsampling_padding(f: torch.Tensor | None, down: tuple[int, int]) -> tuple[int, int, int, int]:
    """The padding with which ×1/down downsampling returns exactly 1/`down` of the size, centred."""
    fw, fh = filter_size(f)
    return (fw - down[0] + 1) // 2, (fw - down[0]) // 2, (fh - down[1] + 1) // 2, (fh - down[1]) // 2


def filter_size(f: torch.Tensor | None) -> tuple[int, int]:
    """(width, height) of a filter in taps. Raises ValueError for what is neither a vector nor a matrix."""
    if f is None:
        return 1, 1
    shape = f.shape
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"a filter is a vector or a matrix; found the shape {list(shape)}")
    return shape[-1], shape[0]


def parse_padding(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """A number, (x, y) or (x before, x after, y before, y after) -> the last of these."""
    p = _whole_numbers(padding)
    if len(p) == 1:
        p = p * 4
    if len(p) == 2:
        p = (p[0], p[0], p[1], p[1])
    if len(p) != 4:
        raise ValueError(f"padding {padding!r}: expected one, two or four whole numbers")
    return p


def _pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    pair = _whole_numbers(value)
    pair = pair * 2 if len(pair) == 1 else pair
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name} {value!r}: expected one or two whole numbers, at least 1")
    return pair


def _whole_numbers(value: int | Sequence[int]) -> tuple[int, ...]:
    """The numbers in `value`; none, if not all of them are whole."""
    if type(value) is int:  # the usual case: a call takes microseconds
        return (value,)
    try:
        return tuple(map(operator.index, value if isinstance(value, Sequence) else [value]))
    except TypeError:
        return ()

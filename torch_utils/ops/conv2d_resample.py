"""2-D convolution with optional upsampling before it and downsampling after it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from torch_utils.ops.conv2d_gradfix import conv2d, conv_transpose2d
from torch_utils.ops.upfirdn2d import downsampling_padding, parse_padding, upfirdn2d, upsampling_padding


def conv2d_resample(
    x: torch.Tensor,
    w: torch.Tensor,
    f: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    groups: int = 1,
    flip_weight: bool = True,
) -> torch.Tensor:
    """Upsample with f, convolve with w, and downsample with f, in the fastest order.

    x: [N, C, H, W]. w: [C', C / groups, kh, kw]. f: low-pass filter from setup_filter.
    padding: of the upsampled picture. flip_weight: True correlates with w, as torch's conv2d does; False convolves.
    Returns [N, C', H', W'].
    """
    p = list(parse_padding(padding))  # before x, after x, before y, after y
    if up > 1:
        p = [a + b for a, b in zip(p, upsampling_padding(f, (up, up)), strict=True)]
    if down > 1:
        p = [a + b for a, b in zip(p, downsampling_padding(f, (down, down)), strict=True)]
    kh, kw = w.shape[2:]

    # Filtering and a 1×1 convolution commute, so convolve the smaller picture: after downsampling, before upsampling.
    if up == 1 and (kh, kw) == (1, 1) and down > 1:
        return _convolve(upfirdn2d(x, f, down=down, padding=p), w, groups, flip_weight)
    if down == 1 and (kh, kw) == (1, 1) and up > 1:
        x = _convolve(x, w, groups, flip_weight)
        return upfirdn2d(x, f, up=up, padding=p, gain=up**2)
    if up > 1:
        # A transposed convolution inserts zeros and convolves in one step, without computing with the zeros. It comes
        # before the filter, so the padding shrinks by the margin of the kernel. It leaves out the last up − 1 zeros.
        x = _convolve_transposed(x, w, up, groups, flip_weight)
        p = [p[0] - (kw - 1), p[1] - (kw - up), p[2] - (kh - 1), p[3] - (kh - up)]
        x = upfirdn2d(x, f, padding=p, gain=up**2)
        return upfirdn2d(x, f, down=down) if down > 1 else x
    if down > 1:
        # Filter at full size, then convolve only at the pixels that are kept.
        x = upfirdn2d(x, f, padding=p)
        return _convolve(x, w, groups, flip_weight, stride=down)
    # PyTorch's convolution pads itself, but only equally on opposite sides.
    if p[0] == p[1] >= 0 and p[2] == p[3] >= 0:
        return _convolve(x, w, groups, flip_weight, padding=(p[2], p[0]))
    return _convolve(F.pad(x, p), w, groups, flip_weight)


def _convolve(
    x: torch.Tensor,
    w: torch.Tensor,
    groups: int,
    flip_weight: bool,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
) -> torch.Tensor:
    """Correlate x with w, or convolve it if flip_weight is False."""
    if not flip_weight:
        w = w.flip([2, 3])
    return conv2d(x, w, groups=groups, stride=stride, padding=padding)


def _convolve_transposed(x: torch.Tensor, w: torch.Tensor, up: int, groups: int, flip_weight: bool) -> torch.Tensor:
    """Insert up − 1 zeros between the pixels of x, and correlate with w, or convolve if flip_weight is False."""
    # conv_transpose2d convolves where conv2d correlates, so the flip is the other way round.
    if flip_weight:
        w = w.flip([2, 3])
    # conv_transpose2d takes input channels first: [C', C / groups, kh, kw] -> [C, C' / groups, kh, kw], group by group.
    out_channels, in_per_group, kh, kw = w.shape
    w = w.reshape(groups, out_channels // groups, in_per_group, kh, kw).transpose(1, 2)
    w = w.reshape(groups * in_per_group, out_channels // groups, kh, kw)  # [C, C' / groups, kh, kw]
    return conv_transpose2d(x, w, stride=up, groups=groups)

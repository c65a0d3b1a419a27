"""Geometry: each image is moved by an affine map, without loss of its fine structure (Karras et al. 2020, appendix B).

An image is continued beyond its edges by its reflection, enlarged twice with the low-pass filter of the sym6 wavelet,
sampled bilinearly at the moved pixels, and made smaller with the mirrored filter. Beyond its reflections it is 0. As
the wavelet is orthonormal, an image that isn't moved stays as it is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from torch_utils.ops import warp
from torch_utils.ops.grid_sample import grid_sample
from torch_utils.ops.upfirdn2d import upfirdn2d
from torch_utils.sending import send
from training.augment.affine import changing, rotation, scaling, translation
from training.augment.draws import Draws

# Low-pass filter of the sym6 wavelet.
_SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
_CENTER = 5  # the tap nearest to the filter's center of mass: it holds a picture in place
_AFTER = len(_SYM6) - 1 - _CENTER  # taps after it
_EXCESS = len(_SYM6) - 2  # samples of the moved picture beyond twice the image, for the filter on its edges


def move(images: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Move images, [N, channels, W, W], by the maps that inverse_maps returns."""
    if warp.serves(images):  # all of the below in one pass, in a ninth of the time
        far = (images.shape[-1] - 1) / 2
        maps = translation(far, far) @ inverse @ translation(-far, -far)
        return warp.warp(images, maps[:, :2], _low_pass())
    windows = _find_windows(inverse, images.shape[-1])
    sizes = windows.size.tolist()
    # Images whose windows have the same size are moved together. An image's size doesn't depend on the others, so not
    # even the rounding of its result does.
    groups = [[i for i, size in enumerate(sizes) if size == one] for one in sorted(set(sizes))]
    pieces = []
    for group in groups:
        piece, size = _chosen(images, group), int(sizes[group[0]])
        pieces.append(_move(piece, windows.start[group], windows.maps[group], size) if size else piece)
    order = [i for group in groups for i in group]
    return _chosen(torch.cat(pieces), sorted(range(len(order)), key=order.__getitem__))


def _chosen(images: torch.Tensor, indices: list[int]) -> torch.Tensor:
    """Return images by their indices."""
    if indices == list(range(len(images))):
        return images
    return images.index_select(0, send(torch.tensor(indices), images.device))


def _move(images: torch.Tensor, start: torch.Tensor, maps: torch.Tensor, size: int) -> torch.Tensor:
    """Move images. start, maps, size: of their windows."""
    taps = send(_low_pass().to(images.dtype), images.device)
    # Sample 2 · i of the enlarged picture lies where pixel i of the window is.
    enlarged = upfirdn2d(_cut(images, start, size), taps, up=2, padding=(_AFTER, _CENTER) * 2, gain=4)
    moved = grid_sample(enlarged, _grid(maps, 2 * images.shape[-1] + _EXCESS, images))
    return upfirdn2d(moved, taps, down=2, flip_filter=True)


def _cut(images: torch.Tensor, start: torch.Tensor, size: int) -> torch.Tensor:
    """Cut a window out of each image and its reflections, [N, channels, W, W] -> [N, channels, size, size].

    start: its first pixel (x, y), [N, 2], on the host.
    """
    width = images.shape[-1]
    # Beyond the edge: width − 1 − |width − 1 − |pixel||.
    pixels = (start[:, :, None] + torch.arange(size)).abs_().sub_(width - 1).abs_().neg_().add_(width - 1)
    x, y = send(pixels.to(torch.int64), images.device).unbind(1)  # [N, size]
    indices = (y[:, :, None] * width + x[:, None, :]).flatten(1)[:, None]  # [N, 1, size · size]
    cut = images.flatten(2).gather(2, indices.expand(-1, images.shape[1], -1))
    return cut.unflatten(2, (size, size))


def inverse_maps(draws: Draws, count: int) -> torch.Tensor:
    """Return the maps from positions in the moved images to those in the given ones, float64 [count, 3, 3].

    Positions are in pixels from the image's center, x to the right and y down, as columns (x, y, 1).
    """
    inverse = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    if draws.xflip is not None:
        inverse = inverse @ scaling(1 - 2 * draws.xflip, 1)
    if draws.rotate90 is not None:
        inverse = inverse @ rotation(draws.rotate90 * (math.pi / 2))
    if draws.xint is not None:
        inverse = inverse @ translation(*-draws.xint.T)
    if draws.scale is not None:
        inverse = inverse @ scaling(1 / draws.scale)
    if draws.rotate_before is not None:
        inverse = inverse @ rotation(draws.rotate_before)
    if draws.aniso is not None:
        inverse = inverse @ scaling(1 / draws.aniso, draws.aniso)
    if draws.rotate_after is not None:
        inverse = inverse @ rotation(draws.rotate_after)
    if draws.xfrac is not None:
        inverse = inverse @ translation(*-draws.xfrac.T)
    return inverse


class _Windows(NamedTuple):
    """What is seen of each image and its reflections: squares. On the host, float64."""

    start: torch.Tensor  # first pixel (x, y), whole numbers [N, 2]
    size: torch.Tensor  # edge in pixels, a whole number; 0 where the image isn't moved [N]
    # From samples of the moved picture, counted from the middle, to grid_sample's positions in the enlarged window.
    maps: torch.Tensor  # [N, 2, 3]


def _find_windows(inverse: torch.Tensor, width: int) -> _Windows:
    """Find the windows of images of this width."""
    far = (width - 1) / 2
    # A pixel of the result lies where sample _CENTER of those under its filter is, in the moved picture. Counted from
    # the middle, as positions are, samples are off by a quarter of a pixel: the filter has two middle taps.
    quarter = (_AFTER - _CENTER) / 4
    to_image = translation(far, far) @ inverse @ translation(quarter, quarter) @ scaling(0.5)
    half = (2 * width + _EXCESS - 1) / 2  # the last sample
    corners = torch.tensor([[-half, -half, half, half], [-half, half, -half, half], [1, 1, 1, 1]], dtype=torch.float64)
    seen = (to_image @ corners)[:, :2]  # in pixels of the image, [N, 2, 4]
    # A bilinear sample takes two of the enlarged picture, and each of these the pixels under the filter. A reflection
    # has one pixel less than the image, and there is one on each side.
    first = (seen.amin(dim=2) - (_AFTER + 1) / 2).floor().clamp(1 - width, 2 * width - 2)
    end = (seen.amax(dim=2) + (_CENTER + 1) / 2).ceil().clamp(1 - width, 2 * width - 2) + 1
    step = max(width // 8, 8)  # few sizes make large groups
    size = ((end - first).amax(dim=1) / step).ceil().mul(step).clamp(max=3 * width - 2)
    start = first.minimum(2 * width - 1 - size[:, None])
    # Sample j of the enlarged window, of 2 · size samples, is at (2 · j + 1) / (2 · size) − 1, where its edges are at
    # −1 and 1; pixel i of the window is sample 2 · i.
    offset = 0.5 / size - 1
    to_window = scaling(2 / size) @ translation(-start[:, 0], -start[:, 1])
    maps = translation(offset, offset) @ to_window @ to_image
    return _Windows(start, torch.where(changing(inverse), size, 0), maps[:, :2])


def _grid(maps: torch.Tensor, size: int, images: torch.Tensor) -> torch.Tensor:
    """Grid of size × size positions for grid_sample, [N, size, size, 2]. images: gives device and type."""
    x, y, constant = send(maps.to(images.dtype), images.device)[:, None, None].unbind(-1)  # [N, 1, 1, 2] each
    along = torch.arange(size, dtype=images.dtype, device=images.device) - (size - 1) / 2
    return x * along[None, :, None] + (y * along[:, None, None] + constant)


def _low_pass() -> torch.Tensor:
    """The wavelet's filter with a sum of 1, float64."""
    taps = torch.tensor(_SYM6, dtype=torch.float64)
    return taps / taps.sum()

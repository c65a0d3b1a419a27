"""Geometry: each image is moved by an affine map, without loss of its fine structure (Karras et al. 2020, appendix B).

An image is continued beyond its edges by its reflection, enlarged twice with the low-pass filter of the sym6 wavelet,
sampled bilinearly at the moved pixels, and made smaller with the mirrored filter. Beyond its reflections it is 0. As
the wavelet is orthonormal, an image that isn't moved stays as it is.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

from torch_utils.ops.grid_sample import grid_sample
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d
from torch_utils.transfer import send
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


def move(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Move images, [N, channels, W, W], as the draws say. What lies beyond the reflections of an image is 0."""
    inverse = inverse_maps(draws, len(images))  # [N, 3, 3], on the host
    moved = (inverse != torch.eye(3, dtype=torch.float64)).any(dim=2).any(dim=1).nonzero()[:, 0]
    if len(moved) == 0:
        return images
    if len(moved) == len(images):
        return _move(images, inverse)
    chosen = send(moved, images.device)
    return images.index_copy(0, chosen, _move(images[chosen], inverse[moved]))


def _move(images: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Move images. inverse: maps from positions in the moved images to those in the given ones, float64 [N, 3, 3]."""
    width = images.shape[-1]
    left, right, above, below = _margins(inverse, width)
    padded = F.pad(images, (left, right, above, below), mode="reflect")
    taps = _filter(images.device).to(images.dtype)
    # Sample 2 · i of the enlarged picture lies where pixel i of the padded one is.
    enlarged = upfirdn2d(padded, taps, up=2, padding=(_AFTER, _CENTER) * 2, gain=4)
    # Sample q of the moved picture lies where pixel (q − center) / 2 of the result is.
    size = 2 * width + len(_SYM6) - 2
    pixels = _scaling(0.5) @ _translation(-_CENTER, -_CENTER)
    far = (width - 1) / 2
    maps = _scaling(2) @ _translation(far + left, far + above) @ inverse @ _translation(-far, -far) @ pixels
    moved = grid_sample(enlarged, _grid(maps, size, enlarged.shape[2:], images))
    return upfirdn2d(moved, taps, down=2, flip_filter=True)


def inverse_maps(draws: Draws, count: int) -> torch.Tensor:
    """Return the maps from positions in the moved images to those in the given ones, float64 [count, 3, 3].

    Positions are in pixels from the image's center, x to the right and y down, as columns (x, y, 1).
    """
    inverse = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    if draws.xflip is not None:
        inverse = inverse @ _scaling(1 - 2 * draws.xflip, 1)
    if draws.rotate90 is not None:
        inverse = inverse @ _rotation(draws.rotate90 * (math.pi / 2))
    if draws.xint is not None:
        inverse = inverse @ _translation(*-draws.xint.T)
    if draws.scale is not None:
        inverse = inverse @ _scaling(1 / draws.scale)
    if draws.rotate_before is not None:
        inverse = inverse @ _rotation(draws.rotate_before)
    if draws.aniso is not None:
        inverse = inverse @ _scaling(1 / draws.aniso, draws.aniso)
    if draws.rotate_after is not None:
        inverse = inverse @ _rotation(draws.rotate_after)
    if draws.xfrac is not None:
        inverse = inverse @ _translation(*-draws.xfrac.T)
    return inverse


Number = float | torch.Tensor  # the same for all images, or one for each [N]


def _matrix(rows: list[list[Number]]) -> torch.Tensor:
    """Make matrices [N, 3, 3] of their entries; [3, 3] if none of them is a tensor."""
    entries = [torch.as_tensor(entry, dtype=torch.float64) for row in rows for entry in row]
    return torch.stack(torch.broadcast_tensors(*entries), dim=-1).unflatten(-1, (3, 3))


def _scaling(x: Number, y: Number | None = None) -> torch.Tensor:
    return _matrix([[x, 0, 0], [0, x if y is None else y, 0], [0, 0, 1]])


def _translation(x: Number, y: Number) -> torch.Tensor:
    return _matrix([[1, 0, x], [0, 1, y], [0, 0, 1]])


def _rotation(angle: torch.Tensor) -> torch.Tensor:
    cos, sin = angle.cos(), angle.sin()
    return _matrix([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def _margins(inverse: torch.Tensor, width: int) -> tuple[int, int, int, int]:
    """Pixels by which all images of a batch are padded: left, right, above, below.

    They are as many as any of the images needs, but no more than a reflection has. So an image's margin doesn't depend
    on the others, except where nothing is seen of it.
    """
    far = (width - 1) / 2
    low, high = -far - _CENTER / 2, far + _AFTER / 2 - 0.5  # outermost samples of the moved picture
    corners = torch.tensor([[low, low, high, high], [low, high, low, high], [1, 1, 1, 1]], dtype=torch.float64)
    seen = (inverse @ corners)[:, :2] + far  # in pixels of the image, [N, 2, 4]
    least, most = seen.amin(dim=[0, 2]).tolist(), seen.amax(dim=[0, 2]).tolist()
    margins = []
    for i in (0, 1):
        # A bilinear sample takes two of the enlarged picture, and each of them the pixels under the filter.
        margins.append(math.ceil(-least[i] + (_AFTER + 1) / 2))
        margins.append(math.ceil(most[i] - (width - 1) + (_CENTER + 1) / 2))
    left, right, above, below = (min(max(margin, 0), width - 1) for margin in margins)
    return left, right, above, below


def _grid(maps: torch.Tensor, size: int, source: torch.Size, images: torch.Tensor) -> torch.Tensor:
    """Grid of size × size samples for grid_sample, [N, size, size, 2].

    maps: from samples to those of the sampled pictures, float64 [N, 3, 3], on the host. source: height and width of
    those pictures. images: gives device and type.
    """
    height, width = source
    # From samples, counted from 0, to grid_sample's coordinates, in which edges lie at −1 and 1.
    normalized = _scaling(2 / width, 2 / height) @ _translation(0.5 - width / 2, 0.5 - height / 2) @ maps
    coefficients = send(normalized[:, :2].to(images.dtype), images.device)  # [N, 2, 3]
    along = torch.arange(size, dtype=images.dtype, device=images.device)
    x, y, constant = coefficients[:, None, None].unbind(-1)  # [N, 1, 1, 2] each
    return x * along[None, :, None] + (y * along[:, None, None] + constant)


@functools.lru_cache(maxsize=8)
def _filter(device: torch.device) -> torch.Tensor:
    return setup_filter(_SYM6).to(device)

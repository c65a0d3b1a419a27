"""Draws of augmentation: what happens to each image, by chance, as a function of the image's key.

All draws of an image come from one generator of the CPU. So they are the same in every process and for every device,
and do not depend on the other images of a minibatch. Only the images of noise are drawn on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from torch_utils.keys import Key, seed_of
from torch_utils.keys import normal as normal_by_key
from training.augment.bands import NUM_BANDS, total_gains


@dataclass(frozen=True)
class Draws:
    """What happens to each of N images. None: to no image. Tensors of the host, float64, except noise_images.

    Shifts are in pixels, to the right and down; turns and angles counterclockwise, in radians.
    """

    xflip: torch.Tensor | None = None  # 1: flipped left to right, 0: not [N]
    rotate90: torch.Tensor | None = None  # quarter turns, 0 to 3 [N]
    xint: torch.Tensor | None = None  # shifts (x, y) by whole pixels [N, 2]
    scale: torch.Tensor | None = None  # factor of sizes [N]
    rotate_before: torch.Tensor | None = None  # angle, before the anisotropic scale [N]
    aniso: torch.Tensor | None = None  # factor of widths; heights are divided by it [N]
    rotate_after: torch.Tensor | None = None  # angle, after it [N]
    xfrac: torch.Tensor | None = None  # shifts (x, y) [N, 2]
    brightness: torch.Tensor | None = None  # added to all contrasts [N]
    contrast: torch.Tensor | None = None  # factor of all contrasts [N]
    lumaflip: torch.Tensor | None = None  # 1: the mean of the contrasts changes its sign, 0: not [N]
    hue: torch.Tensor | None = None  # angle around the axis of gray [N]
    saturation: torch.Tensor | None = None  # factor of deviations from the contrasts' mean [N]
    imgfilter: torch.Tensor | None = None  # gains of the bands [N, 4]
    noise: torch.Tensor | None = None  # SD [N]
    noise_images: torch.Tensor | None = None  # unit normal, on the device, for the M with an SD above 0 [M, C, H, W]
    cutout: torch.Tensor | None = None  # center (x, y) of a square that is cut out, in widths; NaN: none [N, 2]


# Ranges of the published pipes.
SHIFT = 0.125  # largest shift by whole pixels, and SD of the one by fractions, in widths of the image
SCALE = 0.2  # SD of the base-2 logarithms of scale and of anisotropic scale
BRIGHTNESS = 0.2  # SD, in network values
CONTRAST, SATURATION = 0.5, 1.0  # SD of base-2 logarithms
BAND_GAIN = 1.0  # SD of the base-2 logarithm of a band's gain
NOISE = 0.1  # SD of the SD, in network values


def draws(
    keys: Sequence[Key],
    p: float,
    pipe: Collection[str],
    num_contrasts: int,
    resolution: int,
    device: torch.device,
) -> Draws:
    """Draw what happens to images. Each row is a function of its key, p, and what the pipe holds.

    p: probability of each transformation, for each image; what happens to an image at some p also happens at a larger
    one. pipe: names of transformations. device: for images of noise.
    Raises ValueError if p is not from 0 to 1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p = {p}: expected a probability, from 0 to 1")
    numbers = _uniform_numbers(keys)
    found = {}
    for name, parameter in _PARAMETERS.items():
        if parameter.transformation in pipe:
            # There are two rotations, such that at least one of them happens with probability p.
            happens = numbers[name][:, :1] < (1 - math.sqrt(1 - p) if parameter.transformation == "rotate" else p)
            values = parameter.value(numbers[name][:, 1:], resolution)
            found[name] = torch.where(happens, values, parameter.neutral).squeeze(1)  # [N], or [N, 2] as it is
    if "imgfilter" in pipe:
        found["imgfilter"] = total_gains(torch.stack([found.pop(f"band{band}") for band in range(NUM_BANDS)], dim=1))
    if "noise" in pipe:
        noisy = [(*key, "noise image") for key, sd in zip(keys, found["noise"].tolist(), strict=True) if sd > 0]
        images = normal_by_key(noisy, num_contrasts * resolution**2, device)
        found["noise_images"] = images.reshape(-1, num_contrasts, resolution, resolution)
    return Draws(**found)


@dataclass(frozen=True)
class _Parameter:
    """A parameter of a transformation, as a function of uniform numbers."""

    transformation: str
    value: Callable[[torch.Tensor, int], torch.Tensor]  # (numbers from 0 to below 1, resolution) -> values
    numbers: int = 1  # that `value` takes
    neutral: float = 0  # the value that changes nothing


def _signed(u: torch.Tensor) -> torch.Tensor:
    """Turn numbers that are uniform from 0 to 1 into such from −1 to 1."""
    return 2 * u - 1


def _normal(u: torch.Tensor) -> torch.Tensor:
    """Turn numbers that are uniform from 0 to 1 into unit normal ones."""
    return torch.special.ndtri(u.clamp(min=2.0**-54))  # 0, which comes once in 2**53 numbers, would give −∞


def _exp2(x: torch.Tensor) -> torch.Tensor:
    """Compute 2 to the power of x, one by one: torch rounds the last few numbers of a tensor differently."""
    return torch.tensor([2**number for number in x.flatten().tolist()], dtype=x.dtype).reshape(x.shape)


# Name -> parameter. The numbers of all of them are drawn for every image, whatever the pipe. So no parameter depends on
# what else the pipe holds. New ones go to the end.
_PARAMETERS = {
    "xflip": _Parameter("xflip", lambda u, _: (2 * u).floor()),
    "rotate90": _Parameter("rotate90", lambda u, _: (4 * u).floor()),
    "xint": _Parameter("xint", lambda u, width: (_signed(u) * SHIFT * width).round(), numbers=2),
    "scale": _Parameter("scale", lambda u, _: _exp2(_normal(u) * SCALE), neutral=1),
    "rotate_before": _Parameter("rotate", lambda u, _: _signed(u) * math.pi),
    "aniso": _Parameter("aniso", lambda u, _: _exp2(_normal(u) * SCALE), neutral=1),
    "rotate_after": _Parameter("rotate", lambda u, _: _signed(u) * math.pi),
    "xfrac": _Parameter("xfrac", lambda u, width: _normal(u) * SHIFT * width, numbers=2),
    "brightness": _Parameter("brightness", lambda u, _: _normal(u) * BRIGHTNESS),
    "contrast": _Parameter("contrast", lambda u, _: _exp2(_normal(u) * CONTRAST), neutral=1),
    "lumaflip": _Parameter("lumaflip", lambda u, _: (2 * u).floor()),
    "hue": _Parameter("hue", lambda u, _: _signed(u) * math.pi),
    "saturation": _Parameter("saturation", lambda u, _: _exp2(_normal(u) * SATURATION), neutral=1),
    **{
        f"band{band}": _Parameter("imgfilter", lambda u, _: _exp2(_normal(u) * BAND_GAIN), neutral=1)
        for band in range(NUM_BANDS)
    },
    "noise": _Parameter("noise", lambda u, _: _normal(u).abs() * NOISE),
    "cutout": _Parameter("cutout", lambda u, _: u, numbers=2, neutral=math.nan),
}


def _uniform_numbers(keys: Sequence[Key]) -> dict[str, torch.Tensor]:
    """Draw each parameter's numbers, [N, 1 + numbers]. The first one of a row decides whether it happens."""
    counts = [1 + parameter.numbers for parameter in _PARAMETERS.values()]
    rows = torch.empty([len(keys), sum(counts)], dtype=torch.float64)
    generator = torch.Generator()
    for row, key in zip(rows, keys, strict=True):
        row.uniform_(generator=generator.manual_seed(seed_of(*key)))
    return dict(zip(_PARAMETERS, rows.split(counts, dim=1), strict=True))

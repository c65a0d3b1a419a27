"""Draws of augmentation: what happens to each image, by chance, as a function of the image's key.

All draws of an image come from one generator of the CPU. So they are the same in every process and for every device,
and do not depend on the other images of a minibatch. Only the images of noise are drawn on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from torch_utils import keys as random
from training.augment.bands import NUM_BANDS, total_gains

# Ranges of the published pipes.
SHIFT = 0.125  # largest shift by whole pixels, and SD of the one by fractions, in widths of the image
SCALE = 0.2  # SD of the base-2 logarithms of scale and of anisotropic scale
BRIGHTNESS = 0.2  # SD, in network values
CONTRAST, SATURATION = 0.5, 1.0  # SD of base-2 logarithms
BAND_GAIN = 1.0  # SD of the base-2 logarithm of a band's gain
NOISE = 0.1  # SD of the images' SD

# Whatever can happen to an image -> uniform numbers that say how. One more decides whether. All are drawn for every
# image, whatever the pipe, so that none depends on the others. What is added later goes to the end.
_NUMBERS = {
    "xflip": 1,
    "rotate90": 1,
    "xint": 2,
    "scale": 1,
    "rotate_before": 1,
    "aniso": 1,
    "rotate_after": 1,
    "xfrac": 2,
    "brightness": 1,
    "contrast": 1,
    "lumaflip": 1,
    "hue": 1,
    "saturation": 1,
    "imgfilter_0": 1,
    "imgfilter_1": 1,
    "imgfilter_2": 1,
    "imgfilter_3": 1,
    "noise": 1,
    "cutout": 2,
}


@dataclass(frozen=True)
class Draws:
    """What happens to each of N images. None: to no image. Tensors of the host, float64, except noise_images.

    Shifts are in pixels, to the right and down; angles in radians.
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
    noise_images: torch.Tensor | None = (
        None  # unit normal, float32, on the device, one for each SD above 0 [M, C, H, W]
    )
    cutout: torch.Tensor | None = None  # center (x, y) of a square that is cut out, in widths; NaN: none [N, 2]


def draws(
    keys: Sequence[random.Key],
    p: float,
    pipe: Collection[str],
    num_contrasts: int,
    resolution: int,
    device: torch.device,
) -> Draws:
    """Draw what happens to images. Each row is a function of its key, p, and what the pipe holds.

    p: probability of each transformation of the pipe, for each image. What happens to an image at some p also happens
    at a larger one. pipe: names of transformations. The rest is about the images of noise.
    """
    chance = _Chance(keys, p)
    normal, signed = _normal, _signed
    found: dict[str, torch.Tensor] = {}
    if "xflip" in pipe:
        found["xflip"] = chance("xflip", 0, lambda u: (u * 2).floor())
    if "rotate90" in pipe:
        found["rotate90"] = chance("rotate90", 0, lambda u: (u * 4).floor())
    if "xint" in pipe:
        found["xint"] = chance("xint", 0, lambda u: (signed(u) * SHIFT * resolution).round())
    if "scale" in pipe:
        found["scale"] = chance("scale", 1, lambda u: (normal(u) * SCALE).exp2())
    if "rotate" in pipe:
        # Each with a probability such that one of them at least comes with probability p.
        turning = 1 - math.sqrt(1 - p)
        found["rotate_before"] = chance("rotate_before", 0, lambda u: signed(u) * math.pi, turning)
        found["rotate_after"] = chance("rotate_after", 0, lambda u: signed(u) * math.pi, turning)
    if "aniso" in pipe:
        found["aniso"] = chance("aniso", 1, lambda u: (normal(u) * SCALE).exp2())
    if "xfrac" in pipe:
        found["xfrac"] = chance("xfrac", 0, lambda u: normal(u) * SHIFT * resolution)
    if "brightness" in pipe:
        found["brightness"] = chance("brightness", 0, lambda u: normal(u) * BRIGHTNESS)
    if "contrast" in pipe:
        found["contrast"] = chance("contrast", 1, lambda u: (normal(u) * CONTRAST).exp2())
    if "lumaflip" in pipe:
        found["lumaflip"] = chance("lumaflip", 0, lambda u: (u * 2).floor())
    if "hue" in pipe:
        found["hue"] = chance("hue", 0, lambda u: signed(u) * math.pi)
    if "saturation" in pipe:
        found["saturation"] = chance("saturation", 1, lambda u: (normal(u) * SATURATION).exp2())
    if "imgfilter" in pipe:
        gains = [chance(f"imgfilter_{b}", 1, lambda u: (normal(u) * BAND_GAIN).exp2()) for b in range(NUM_BANDS)]
        found["imgfilter"] = total_gains(torch.stack(gains, dim=1))
    if "noise" in pipe:
        found["noise"] = chance("noise", 0, lambda u: (normal(u) * NOISE).abs())
        noisy = [(*key, "noise image") for key, sd in zip(keys, found["noise"].tolist(), strict=True) if sd > 0]
        images = random.normal(noisy, num_contrasts * resolution**2, device)
        found["noise_images"] = images.reshape(-1, num_contrasts, resolution, resolution)
    if "cutout" in pipe:
        found["cutout"] = chance("cutout", math.nan, lambda u: u)
    return Draws(**found)


class _Chance:
    """Uniform numbers of images, and what they say at a probability p."""

    def __init__(self, keys: Sequence[random.Key], p: float) -> None:
        """Draw all numbers of each image."""
        counts = [1 + count for count in _NUMBERS.values()]
        rows = torch.empty([len(keys), sum(counts)], dtype=torch.float64)
        generator = torch.Generator()
        for row, key in zip(rows, keys, strict=True):
            row.uniform_(generator=generator.manual_seed(random.seed_of(*key)))
        self._p, self._numbers = p, dict(zip(_NUMBERS, rows.split(counts, dim=1), strict=True))

    def __call__(
        self, name: str, neutral: float, value: Callable[[torch.Tensor], torch.Tensor], p: float | None = None
    ) -> torch.Tensor:
        """Return `value` of the uniform numbers that belong to a name, for the images chosen; `neutral` for the others.

        p: another probability than that of all. Returns [N], or [N, 2] for a name with two numbers.
        """
        numbers = self._numbers[name]
        happens = numbers[:, :1] < (self._p if p is None else p)
        return torch.where(happens, value(numbers[:, 1:]), neutral).squeeze(1)  # [N, 1] -> [N]; [N, 2] stays


def _signed(u: torch.Tensor) -> torch.Tensor:
    """Turn numbers that are uniform from 0 to 1 into such from −1 to 1."""
    return 2 * u - 1


def _normal(u: torch.Tensor) -> torch.Tensor:
    """Turn numbers that are uniform from 0 to 1 into unit normal ones."""
    return torch.special.ndtri(u.clamp(min=2.0**-54))  # 0, which comes once in 2**53 numbers, would give −∞

"""Augmentation of images that a discriminator judges: a pure function of images and draws.

Geometry and cutout act on all channels, the rest on the contrasts only. Every step is linear in the images, or affine,
and has derivatives of all orders.
"""

from __future__ import annotations

from dataclasses import fields

import torch

from torch_utils.sending import send
from training.augment.affine import changing
from training.augment.bands import filter_bands
from training.augment.color import color_maps, recolor
from training.augment.draws import Draws
from training.augment.geometry import inverse_maps, move

CUTOUT = 0.5  # edge of the square that is cut out, in widths of the image


def augment(images: torch.Tensor, draws: Draws, num_contrasts: int) -> torch.Tensor:
    """Augment images, network values [N, C + K, W, W]. An image's result depends on its own draws only.

    num_contrasts: C. The label maps' first channel is the background. They are moved, and cut out, as differences from
    a slice that is all background. So the sum of their probabilities stays 1 everywhere, also beyond their edges.
    """
    _require_rows(draws, len(images))
    background = _background(images, num_contrasts)  # [1, C + K, 1, 1]
    inverse = inverse_maps(draws, len(images))  # [N, 3, 3]
    if changing(inverse).any():
        images = move(images - background, inverse) + background
    images = torch.cat([_changed(images[:, :num_contrasts], draws), images[:, num_contrasts:]], dim=1)
    if draws.cutout is not None and not draws.cutout.isnan().all():
        images = (images - background) * _kept(draws.cutout, images) + background
    return images


def _require_rows(draws: Draws, count: int) -> None:
    """Raise ValueError unless the draws are for as many images."""
    for field in fields(draws):
        values = getattr(draws, field.name)
        if values is not None and field.name != "noise_images" and len(values) != count:
            raise ValueError(f"{field.name} is drawn for {len(values)} images, and there are {count}")


def _changed(contrasts: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Apply to contrasts what leaves label maps as they are, [N, C, W, W]."""
    maps = color_maps(draws, *contrasts.shape[:2])
    if changing(maps).any():
        contrasts = recolor(contrasts, maps)
    if draws.imgfilter is not None and bool((draws.imgfilter != 1).any()):
        contrasts = filter_bands(contrasts, draws.imgfilter)
    if draws.noise is not None and bool((draws.noise > 0).any()):
        contrasts = _add_noise(contrasts, draws)
    return contrasts


def _background(images: torch.Tensor, num_contrasts: int) -> torch.Tensor:
    """What is left beyond an image's edges: 0 in contrasts, +1 in the background's map, −1 in the others."""
    values = images.new_zeros([1, images.shape[1], 1, 1])
    values[:, num_contrasts:] = -1
    values[:, num_contrasts : num_contrasts + 1] = 1
    return values


def _add_noise(contrasts: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Add noise to those images that have some."""
    assert draws.noise is not None and draws.noise_images is not None
    noisy = draws.noise.nonzero()[:, 0]  # [M]
    sd = send(draws.noise[noisy].to(contrasts.dtype), contrasts.device)[:, None, None, None]
    noise = draws.noise_images.to(contrasts.dtype) * sd  # [M, C, H, W]
    return contrasts.index_add(0, send(noisy, contrasts.device), noise)


def _kept(centers: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return 0 in squares that are cut out and 1 elsewhere, [N, 1, W, W].

    centers: (x, y) in widths, NaN for images without a square [N, 2].
    """
    width = images.shape[-1]
    positions = (torch.arange(width, dtype=torch.float64) + 0.5) / width
    inside = (positions - centers[:, :, None]).abs() < CUTOUT / 2  # [N, 2, W]; never near NaN
    across, down = send(inside.to(images.dtype), images.device).unbind(1)  # [N, W] each
    return 1 - down[:, None, :, None] * across[:, None, None, :]

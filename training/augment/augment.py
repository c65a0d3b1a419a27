"""Augmentation of images that a discriminator judges: a pure function of images and draws.

Geometry and cutout act on all channels, the rest on the contrasts only. Every step is linear in the images, or affine,
and has derivatives of all orders.
"""

from __future__ import annotations

import torch

from torch_utils.transfer import send
from training.augment.bands import filter_bands
from training.augment.color import is_colored, recolor
from training.augment.draws import Draws
from training.augment.geometry import move

CUTOUT = 0.5  # edge of the square that is cut out, in widths of the image


def augment(images: torch.Tensor, draws: Draws, num_contrasts: int) -> torch.Tensor:
    """Augment images, network values [N, C + K, W, W]. An image's result depends on its own draws only.

    num_contrasts: C. The label maps' first channel is the background. They are moved, and cut out, as differences from
    a slice that is all background. So the sum of their probabilities stays 1 everywhere, also beyond their edges.
    """
    background = _background(images, num_contrasts)  # [1, C + K, 1, 1]
    x = images - background
    x = move(x, draws)
    contrasts, maps = x[:, :num_contrasts], x[:, num_contrasts:]
    if is_colored(draws):
        contrasts = recolor(contrasts, draws)
    if draws.imgfilter is not None:
        contrasts = filter_bands(contrasts, send(draws.imgfilter.to(images.dtype), images.device))
    if draws.noise is not None:
        contrasts = _add_noise(contrasts, draws)
    x = torch.cat([contrasts, maps], dim=1)
    if draws.cutout is not None:
        x = x * _kept(draws.cutout, x)
    return x + background


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

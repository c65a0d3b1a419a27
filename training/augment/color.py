"""Colors of contrasts: an affine map of the C values of each pixel (Karras et al. 2020, appendix B)."""

from __future__ import annotations

import torch

from torch_utils.sending import send
from training.augment.draws import Draws


def color_maps(draws: Draws, count: int, num_contrasts: int) -> torch.Tensor:
    """Return the affine map of each image as a matrix for values followed by a 1, float64 [count, C + 1, C + 1].

    Raises ValueError if hue or luma flip are to change other than 3 contrasts.
    """
    eye = torch.eye(num_contrasts, dtype=torch.float64)
    mean = torch.full_like(eye, 1 / num_contrasts)  # the matrix that sets all contrasts to their mean
    maps = torch.eye(num_contrasts + 1, dtype=torch.float64).repeat(count, 1, 1)
    if draws.brightness is not None:
        maps[:, :-1, -1] += draws.brightness[:, None]
    if draws.contrast is not None:
        maps[:, :-1] *= draws.contrast[:, None, None]
    if draws.lumaflip is not None:
        _require_three("luma flip", num_contrasts)
        maps[:, :-1] = (eye - 2 * mean * draws.lumaflip[:, None, None]) @ maps[:, :-1]
    if draws.hue is not None:
        _require_three("hue", num_contrasts)
        maps[:, :-1] = _rotations(draws.hue) @ maps[:, :-1]
    if draws.saturation is not None:
        maps[:, :-1] = (mean + (eye - mean) * draws.saturation[:, None, None]) @ maps[:, :-1]
    return maps


def _rotations(angles: torch.Tensor) -> torch.Tensor:
    """Return the matrices, [N, 3, 3], that turn 3 values around the axis where all are equal (Rodrigues' formula)."""
    a = 3**-0.5  # coordinates of the axis
    cross = torch.tensor([[0, -a, a], [a, 0, -a], [-a, a, 0]], dtype=torch.float64)  # cross product with the axis
    along = torch.full_like(cross, 1 / 3)  # projection to the axis
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    return along + cos * (torch.eye(3, dtype=torch.float64) - along) + sin * cross


def _require_three(name: str, num_contrasts: int) -> None:
    if num_contrasts != 3:
        raise ValueError(f"{name} is defined for 3 contrasts; found {num_contrasts}")


def recolor(contrasts: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Apply the maps that color_maps returns to contrasts, [N, C, H, W]."""
    maps = send(maps.to(contrasts.dtype), contrasts.device)
    matrix, offset = maps[:, :-1, :-1], maps[:, :-1, -1:]  # [N, C, C], [N, C, 1]
    return torch.baddbmm(offset, matrix, contrasts.flatten(2)).reshape(contrasts.shape)

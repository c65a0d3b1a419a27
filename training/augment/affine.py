"""Affine maps of the plane as matrices, for columns (x, y, 1)."""

from __future__ import annotations

import torch

Number = float | torch.Tensor  # the same for all images, or one for each [N]


def scaling(x: Number, y: Number | None = None) -> torch.Tensor:
    """Multiply positions: matrices [N, 3, 3], or [1, 3, 3] for plain numbers. y: that of x by default."""
    matrix = _identities(x)
    matrix[:, 0, 0] = x
    matrix[:, 1, 1] = x if y is None else y
    return matrix


def translation(x: Number, y: Number) -> torch.Tensor:
    """Shift positions."""
    matrix = _identities(x)
    matrix[:, 0, 2] = x
    matrix[:, 1, 2] = y
    return matrix


def rotation(angle: torch.Tensor) -> torch.Tensor:
    """Turn positions from the x axis towards the y axis, by angles [N] in radians."""
    matrix = _identities(angle)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 1, 0] = angle.sin()
    matrix[:, 0, 1] = -matrix[:, 1, 0]
    return matrix


def _identities(like: Number) -> torch.Tensor:
    return torch.eye(3, dtype=torch.float64).repeat(len(like) if isinstance(like, torch.Tensor) else 1, 1, 1)


def changing(maps: torch.Tensor) -> torch.Tensor:
    """Tell which of the matrices [N, n, n] are not the identity, bool [N]."""
    return (maps != torch.eye(maps.shape[-1], dtype=maps.dtype)).flatten(1).any(dim=1)

"""Affine maps as matrices."""

from __future__ import annotations

import torch

Number = float | torch.Tensor  # the same for all images, or one for each [N]


def _matrix(rows: list[list[Number]]) -> torch.Tensor:
    """Make matrices [N, 3, 3] of their entries; [3, 3] if none of them is a tensor."""
    entries = [torch.as_tensor(entry, dtype=torch.float64) for row in rows for entry in row]
    return torch.stack(torch.broadcast_tensors(*entries), dim=-1).unflatten(-1, (3, 3))


def scaling(x: Number, y: Number | None = None) -> torch.Tensor:
    return _matrix([[x, 0, 0], [0, x if y is None else y, 0], [0, 0, 1]])


def translation(x: Number, y: Number) -> torch.Tensor:
    return _matrix([[1, 0, x], [0, 1, y], [0, 0, 1]])


def rotation(angle: torch.Tensor) -> torch.Tensor:
    cos, sin = angle.cos(), angle.sin()
    return _matrix([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def changing(maps: torch.Tensor) -> torch.Tensor:
    """Tell which of the matrices [N, n, n] are not the identity, bool [N]."""
    return (maps != torch.eye(maps.shape[-1], dtype=maps.dtype)).flatten(1).any(dim=1)

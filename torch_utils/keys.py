"""Random numbers by key: each is a function of what it is for, such as (seed, step, phase, sample).

No generator is carried from one draw to the next. So a draw depends neither on the draws before it, nor on the process
that makes it, and a run that continues needs no random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

Key = tuple[int | str, ...]


def seed_of(*key: int | str) -> int:
    """Hash a key to a seed from 0 to 2**63 − 1. PyTorch's generators of the CPU use its lower 32 bits, GPUs' all."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform(*key: int | str) -> float:
    """Draw a number from 0 to below 1."""
    return seed_of(*key) / 2**63


def integer(below: int, *key: int | str) -> int:
    """Draw a whole number from 0 to `below` − 1."""
    return seed_of(*key) % below


def normal(keys: Sequence[Key], size: int, device: torch.device) -> torch.Tensor:
    """Draw unit normal numbers, float32 [len(keys), size]. A row depends on its key only, and on the kind of device."""
    rows = torch.empty([len(keys), size], dtype=torch.float32, device=device)
    generator = torch.Generator(device)
    for row, key in zip(rows, keys, strict=True):
        row.normal_(generator=generator.manual_seed(seed_of(*key)))
    return rows

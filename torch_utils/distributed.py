"""The processes of a run, seen from one of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import torch

Value = TypeVar("Value")


def default_device() -> torch.device:
    """Return the first GPU, or the CPU if there is no GPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class World:
    """The processes of a run, and the place of this one among them. By default it is alone."""

    rank: int = 0  # number of this process among all
    size: int = 1  # number of processes
    local_rank: int = 0  # number of this process among those of its machine
    local_size: int = 1  # number of processes of this machine
    device: torch.device = field(default_factory=default_device)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    def add_up(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its sum over all processes. Every process gets the same bits."""

    def share(self, value: Value) -> Value:
        """Return the first process's value in all processes. It must be plain JSON."""
        return value

    def meet(self) -> None:
        """Wait until all processes have come here, however long it takes."""

"""Slices in memory count once a machine, however many ranks it has."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from pathlib import Path

from dnnlib.errors import describe_os_error
from slices.dataset import MEMORY, SliceDataset
from torch_utils.distributed import World


def share_slices(dataset: SliceDataset, world: World) -> str | None:
    """Let the ranks of each machine keep the slices of a data set together. All ranks must call this.

    Where that fails, each of them keeps slices for itself, but has only its share of the memory. Returns a remark on
    that for the log, or None.
    """
    # The same name on all machines. The first rank of each machine makes a file of this name there.
    path = Path(tempfile.gettempdir()) / f"stylegan2-mr-slices-{world.share(secrets.token_hex(16))}"
    shares = world.local_size > 1 and dataset.in_memory
    problem = None
    for create in (True, False):  # first one rank of each machine, then the others
        if shares and create == (world.local_rank == 0):
            try:
                dataset.share(path, create)
            except OSError as error:
                problem = error
                dataset.limit_memory(MEMORY // world.local_size)
        world.meet()
    # All have opened the file. Without its name, the system removes it with the last process that has it open.
    if world.local_rank == 0:
        with contextlib.suppress(OSError):
            path.unlink()
    if problem is None:
        return None
    return (
        f"The {world.local_size} processes of a machine can't keep the slices in memory together "
        f"({describe_os_error(problem)}). Each {'keeps them alone' if dataset.in_memory else 'reads them when needed'}"
    )

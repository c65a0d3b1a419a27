"""Generated slices that several ranks compute, brought together in the order of their seeds."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dnnlib.files import atomic_path
from slices.archive.zips import Packed, ZipReader, ZipWriter
from torch_utils.distributed import World


class Member(NamedTuple):
    """A generated slice, ready to be written."""

    seed: int
    packed: Packed


def seeds_of_rank(seeds: Sequence[int], batch: int, world: World) -> list[int]:
    """Seeds that this rank generates slices of.

    A rank takes whole batches, in turns with the others. So batches are those of a process that works alone, and slices
    too, as far as processes with fewer threads round alike.
    """
    return [seed for n, seed in enumerate(seeds) if n // batch % world.size == world.rank]


@contextlib.contextmanager
def staged_together(path: Path, force: bool, world: World) -> Iterator[Path]:
    """Yield a temporary path, the same in all ranks. The first rank's file moves to `path`; see `atomic_path`.

    Files whose names begin with it disappear when the block ends. Ranks on other machines must see the folder.
    """
    if world.first:
        with atomic_path(path, force) as place:
            yield Path(world.share(str(place.absolute())))
    else:
        yield Path(world.share(""))


def gather(members: Iterable[Member], seeds: Sequence[int], place: Path, world: World) -> Iterable[Member]:
    """Bring slices together: of all ranks, for the first one. The others get none.

    members: of this rank, with some of the seeds. place: from `staged_together`.
    Returns slices of all seeds, in their order. If this process works alone, they are computed as they are taken.
    """
    if world.size == 1:
        return members
    parts = [place.with_name(f"{place.name}.{rank}") for rank in range(world.size)]
    with contextlib.closing(ZipWriter(parts[world.rank])) as part:
        for member in members:
            part.add(str(member.seed), member.packed)
    world.meet()
    return _joined([ZipReader(path) for path in parts], seeds) if world.first else ()


def _joined(parts: Sequence[ZipReader], seeds: Sequence[int]) -> Iterator[Member]:
    """Yield slices of all seeds from the ranks' parts."""
    for seed in seeds:
        name = str(seed)
        part = next(part for part in parts if name in part)
        yield Member(seed, part.packed(name, sys.maxsize))  # of any size, as this program wrote it

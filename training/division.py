"""Division of a minibatch over processes, into parts, and into groups of the minibatch standard deviation."""

import itertools

from dnnlib.errors import UserError


def divide(batch: int, batch_gpu: int | None, mbstd: int, gpus: int) -> tuple[int, int]:
    """Return batch_gpu, the images of a part of a minibatch, and the group size of the minibatch standard deviation.

    batch_gpu: None is one part for each process. mbstd: the largest group size.
    All processes compute the same number of parts, and a part consists of whole groups. Raises UserError with sizes
    that would do.
    """
    over, on_each = (f" over {gpus} GPUs", " on each") if gpus > 1 else ("", "")
    if batch_gpu is None:
        share = batch // gpus
        group = min(mbstd, share)
        if not _divides(batch, mbstd, gpus):
            groups = f" into groups of {group}{on_each}" if group > 1 else ""
            sizes = " or ".join(map(str, _batches_around(batch, mbstd, gpus)))
            raise UserError(f"--batch {batch}{over} does not divide{groups}: use {sizes}")
        return share, group
    group = min(mbstd, batch_gpu)
    if batch_gpu % group:
        raise UserError(
            f"--batch-gpu {batch_gpu} does not divide into groups of {group}: use {_around(batch_gpu, group)}"
        )
    if batch % (gpus * batch_gpu):
        below = largest_part(batch, batch_gpu, mbstd, gpus)
        raise UserError(
            f"--batch {batch}{over} does not divide into parts of --batch-gpu {batch_gpu}{on_each}: "
            f"use --batch {_around(batch, gpus * batch_gpu)}" + (f", or --batch-gpu {below}" if below else "")
        )
    return batch_gpu, group


def largest_part(batch: int, most: int, mbstd: int, gpus: int) -> int | None:
    """Return the largest batch_gpu up to `most` that `divide` accepts. None: the batch has none."""
    shares = batch // gpus if batch % gpus == 0 else 0  # images of a process
    sizes = range(min(most, shares), 0, -1)
    return next((size for size in sizes if shares % size == 0 and size % min(mbstd, size) == 0), None)


def nearest_batch(batch: int, mbstd: int, gpus: int) -> int:
    """Return the nearest batch that divides; of two, the smaller one."""
    return min(_batches_around(batch, mbstd, gpus), key=lambda b: abs(b - batch))


def _divides(batch: int, mbstd: int, gpus: int) -> bool:
    """Return whether every process can compute the same number of whole groups. A share below `mbstd` is one group."""
    share, rest = divmod(batch, gpus)
    return share > 0 and rest == 0 and share % min(mbstd, share) == 0


def _batches_around(batch: int, mbstd: int, gpus: int) -> list[int]:
    """Return the nearest batches that divide: the one below, if there is one, and the one above."""
    below = next((b for b in range(batch, 0, -1) if _divides(b, mbstd, gpus)), None)
    above = next(b for b in itertools.count(batch) if _divides(b, mbstd, gpus))
    return [above] if below is None else [below, above]


def _around(size: int, step: int) -> str:
    """Name the multiples of `step` below and above a size that is none: "16 or 32"."""
    below = size // step * step
    return f"{below} or {below + step}" if below else f"{step}"

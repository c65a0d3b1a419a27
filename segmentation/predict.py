"""What a U-Net answers, for slices and for whole examinations."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from dnnlib.errors import UserError
from segmentation.config import EVALUATED_AT_ONCE
from segmentation.unet import TrainedUNet, to_input
from slices.archive.reader import ArchiveReader
from slices.schema import OUTSIDE

Examination = tuple[str, str | None]  # patient and volume


class Segmented(NamedTuple):
    """All slices of one examination, and what the U-Net made of them."""

    background: np.ndarray  # uint8 [S, H, W], the contrast that is shown
    truth: np.ndarray  # class indices, uint8 [S, H, W]
    prediction: np.ndarray  # class indices, uint8 [S, H, W], the network's own answer everywhere
    inside: np.ndarray  # bool [S, H, W], the head: where any contrast isn't 0
    places: tuple[int | None, ...]  # index of each slice in the volume, None where that is unknown


class _SegmentedSlice(NamedTuple):
    """One slice of a Segmented."""

    background: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    inside: np.ndarray
    place: int | None


@torch.inference_mode()
def predict_slices(unet: TrainedUNet, contrasts: np.ndarray) -> np.ndarray:
    """Segment stored contrasts, uint8 [N, C, H, W], as one batch. Returns class indices, uint8 [N, H, W].

    Raises UserError where the network has no answer.
    """
    unet.network.eval()
    device = next(unet.network.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(contrasts)).to(device)
    logits = unet.network(to_input(pixels, unet.info.schema))
    if not logits.isfinite().all():
        raise UserError("the U-Net's answers are not finite numbers, so its Dice would mean nothing: train it again")
    return logits.argmax(dim=1).to(torch.uint8).cpu().numpy()


def predict_examinations(
    unet: TrainedUNet, reader: ArchiveReader, examinations: Sequence[Examination], batch: int = EVALUATED_AT_ONCE
) -> Iterator[Segmented]:
    """Segment all slices of these examinations, one examination after the other.

    Batches run across examinations: a fake is an examination of one slice, and a network is slow on single slices.
    """
    groups = reader.by_examination()
    slices = _predict_each(unet, reader, [i for one in examinations for i in groups[one]], batch)
    for examination in examinations:
        # Slices come in the order of the examinations, so the next ones are this one's.
        own = list(itertools.islice(slices, len(groups[examination])))
        yield Segmented(
            background=np.stack([one.background for one in own]),
            truth=np.stack([one.truth for one in own]),
            prediction=np.stack([one.prediction for one in own]),
            inside=np.stack([one.inside for one in own]),
            places=tuple(one.place for one in own),
        )


def _predict_each(
    unet: TrainedUNet, reader: ArchiveReader, numbers: Sequence[int], batch: int
) -> Iterator[_SegmentedSlice]:
    """Segment the slices with these numbers in the archive, `batch` at a time, and hand them out one by one."""
    for start in range(0, len(numbers), batch):
        some = numbers[start : start + batch]
        contrasts, truth = reader.schema.split(np.stack([reader.read_checked(i) for i in some]))
        prediction = predict_slices(unet, contrasts)
        inside = (contrasts != OUTSIDE).any(axis=1)  # [N, C, H, W] -> [N, H, W]
        background = contrasts[:, reader.schema.shown]
        for k, i in enumerate(some):
            place = reader.info.slices[i].index
            yield _SegmentedSlice(background[k], truth[k], prediction[k], inside[k], place)

"""Predictions of a U-Net, for slices and for whole examinations."""

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
    """All slices of one examination, with truth and prediction. S slices, H×W pixels."""

    background: np.ndarray  # uint8 [S, H, W], the contrast that is shown
    truth: np.ndarray  # class indices, uint8 [S, H, W]
    prediction: np.ndarray  # class indices, uint8 [S, H, W], not masked: also outside the head
    inside: np.ndarray  # bool [S, H, W], the head: pixels where any contrast isn't 0
    places: tuple[int | None, ...]  # index of each slice in its volume; None if unknown


class _SegmentedSlice(NamedTuple):
    """One slice of a Segmented, with the same fields."""

    background: np.ndarray  # [H, W], like the following
    truth: np.ndarray
    prediction: np.ndarray
    inside: np.ndarray
    place: int | None


@torch.inference_mode()
def predict_slices(unet: TrainedUNet, contrasts: np.ndarray) -> np.ndarray:
    """Segment stored contrasts, uint8 [N, C, H, W], as one batch. Returns class indices, uint8 [N, H, W].

    Raises UserError if a logit is not finite.
    """
    unet.network.eval()
    device = next(unet.network.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(contrasts)).to(device)
    logits = unet.network(to_input(pixels, unet.info.schema))  # [N, K, H, W]
    if not logits.isfinite().all():
        raise UserError("the U-Net's predictions are not finite numbers, so a Dice would mean nothing: train it again")
    return logits.argmax(dim=1).to(torch.uint8).cpu().numpy()


def predict_examinations(
    unet: TrainedUNet, reader: ArchiveReader, examinations: Sequence[Examination], batch: int = EVALUATED_AT_ONCE
) -> Iterator[Segmented]:
    """Segment all slices of these examinations, one examination after the other.

    A batch may hold slices of several examinations. Generated slices are examinations of one slice each, and a batch
    for each would be slow.
    """
    groups = reader.by_examination()
    # A lazy stream of slices: the numbers of the first examination, then of the second, and so on.
    slices = _predict_each(unet, reader, [i for one in examinations for i in groups[one]], batch)
    for examination in examinations:
        # Slices come in the order of the examinations, so the next ones belong to this one.
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
    """Segment the slices with these numbers in the archive, `batch` at a time, and yield them one by one."""
    for start in range(0, len(numbers), batch):
        some = numbers[start : start + batch]
        # [N, C, H, W] and [N, H, W]
        contrasts, truth = reader.schema.split(np.stack([reader.read_checked(i) for i in some]))
        prediction = predict_slices(unet, contrasts)
        inside = (contrasts != OUTSIDE).any(axis=1)  # [N, C, H, W] -> [N, H, W]
        background = contrasts[:, reader.schema.shown]  # [N, H, W]
        for k, i in enumerate(some):
            place = reader.info.slices[i].index
            yield _SegmentedSlice(background[k], truth[k], prediction[k], inside[k], place)

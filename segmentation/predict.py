"""What a U-Net answers for whole examinations."""

from __future__ import annotations

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
    """All slices of one examination, and what the U-Net made of them.

    background: the contrast that is shown; truth, prediction: class indices; inside: where any contrast isn't 0; all
    [S, H, W]. places: each slice's index in the volume, if it has one.
    """

    background: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    inside: np.ndarray
    places: tuple[int | None, ...]


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
    """Segment all slices of these, in their order. Batches run across examinations: a fake has one slice."""
    groups, schema = reader.by_examination(), reader.schema
    order = [i for examination in examinations for i in groups[examination]]
    waiting: list[tuple] = []  # background, truth, prediction, inside, place of single slices
    todo = iter(examinations)
    examination = next(todo, None)
    for start in range(0, len(order), batch):
        numbers = order[start : start + batch]
        contrasts, truth = schema.split(np.stack([reader.read_checked(i) for i in numbers]))
        inside = (contrasts != OUTSIDE).any(axis=1)
        places = [reader.info.slices[i].index for i in numbers]
        answers = predict_slices(unet, contrasts)
        waiting += zip(contrasts[:, schema.shown], truth, answers, inside, places, strict=True)
        while examination is not None and len(waiting) >= len(groups[examination]):
            complete, waiting = waiting[: len(groups[examination])], waiting[len(groups[examination]) :]
            *pictures, places = zip(*complete, strict=True)
            yield Segmented(*(np.stack(part) for part in pictures), places)
            examination = next(todo, None)

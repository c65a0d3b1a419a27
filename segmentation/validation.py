"""Validation patients: the Dice of a U-Net while it trains, for curves. No network is selected by it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from segmentation.predict import predict_examinations
from segmentation.scores import score_examination, summarize, targets_of
from segmentation.selection import Selection, refuse_validation
from segmentation.unet import TrainedUNet
from slices.archive.reader import ArchiveReader


class Validation:
    """An archive of validation patients, ready to be segmented.

    Raises UserError for slices of another schema or resolution, of the test part of a split, of patients in `exclude`,
    and of patients that the U-Net learns from, directly or through a GAN.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        selected: Sequence[Selection],
        exclude: Iterable[str | os.PathLike] = (),  # archives whose patients are kept for testing
    ) -> None:
        self._reader = ArchiveReader(path)
        refuse_validation(self._reader, selected, exclude)

    def dice(self, unet: TrainedUNet) -> float:
        """Dice of the schema's first region, or of its first class: the mean over the patients."""
        reader, target = self._reader, targets_of(self._reader.schema)[0]
        names = list(reader.by_examination())
        segmented = zip(names, predict_examinations(unet, reader, names), strict=True)
        scored = [
            score_examination(patient, one.prediction, one.truth, one.inside, reader.schema, volume)
            for (patient, volume), one in segmented
        ]
        return summarize(scored, target).mean

"""What the slices of an archive show: areas of the lesion classes, and specks of label noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from slices.archive.reader import ArchiveReader
from slices.class_areas import ClassAreas

SPECK = 4  # pixels; a smaller connected component of a lesion class counts as a speck


@dataclass(frozen=True)
class ArchiveContent:
    """Areas and specks in the first slices of an archive."""

    areas: ClassAreas
    specks: int  # connected components of one class with fewer than SPECK pixels, diagonal neighbors connected

    @property
    def specks_per_slice(self) -> float:
        return self.specks / self.areas.num_slices

    @property
    def lesion_free(self) -> float:
        """Share of the slices without lesion."""
        return self.areas.num_lesion_free / self.areas.num_slices


def content_of(archive: ArchiveReader, first: int | None = None) -> ArchiveContent:
    """Count areas and specks in the first slices of an archive, or in all."""
    areas, specks = ClassAreas.none(archive.schema), 0
    for i in range(len(archive) if first is None else first):
        _, classes = archive.schema.split(archive.read(i))
        areas += ClassAreas.of(classes[None], archive.schema)
        specks += count_specks(classes)
    return ArchiveContent(areas, specks)


def count_specks(classes: np.ndarray) -> int:
    """Number of specks in a slice given as class indices [H, W]."""
    specks = 0
    for index in np.unique(classes[classes > 0]):
        components, _ = ndimage.label(classes == index, structure=np.ones((3, 3)))
        # The first count is that of the pixels outside all components.
        specks += int((np.bincount(components.ravel())[1:] < SPECK).sum())
    return specks

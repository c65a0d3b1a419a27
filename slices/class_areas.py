"""Areas of lesion classes, in pixels and in slices. Nothing else in the project counts them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slices.archive.reader import ArchiveReader
from slices.schema import Schema


@dataclass(frozen=True)
class ClassAreas:
    """Areas of the lesion classes in some slices. `+` adds the areas in other slices of the same schema."""

    num_slices: int
    num_lesion_free: int  # slices without any lesion class
    num_pixels: int  # of all slices, background included
    class_pixels: dict[str, int]  # class name -> pixels
    class_slices: dict[str, int]  # class name -> slices with any of its pixels

    @classmethod
    def none(cls, schema: Schema) -> ClassAreas:
        """The areas in no slices: the start of a sum."""
        nothing = dict.fromkeys(schema.class_names, 0)
        return cls(0, 0, 0, nothing, nothing)

    @classmethod
    def of(cls, classes: np.ndarray, schema: Schema) -> ClassAreas:
        """The areas in slices given as class indices, uint8 [N, H, W]."""
        # Class 0 is the background, which is dropped. `reshape` keeps the columns if there are no slices.
        counted = [np.bincount(one.ravel(), minlength=len(schema.classes) + 1)[1:] for one in classes]
        counts = np.array(counted, np.int64).reshape(len(classes), len(schema.classes))  # [N, classes]
        return cls(
            num_slices=len(classes),
            num_lesion_free=int((counts.sum(axis=1) == 0).sum()),
            num_pixels=classes.size,
            class_pixels=dict(zip(schema.class_names, counts.sum(axis=0).tolist(), strict=True)),
            class_slices=dict(zip(schema.class_names, (counts > 0).sum(axis=0).tolist(), strict=True)),
        )

    @classmethod
    def of_archive(cls, archive: ArchiveReader) -> ClassAreas:
        """The areas in all slices of an archive, read one after the other."""
        areas = cls.none(archive.schema)
        for i in range(len(archive)):
            _, classes = archive.schema.split(archive.read(i))
            areas += cls.of(classes[None], archive.schema)
        return areas

    def __add__(self, other: ClassAreas) -> ClassAreas:
        assert self.class_pixels.keys() == other.class_pixels.keys(), (self, other)
        return ClassAreas(
            num_slices=self.num_slices + other.num_slices,
            num_lesion_free=self.num_lesion_free + other.num_lesion_free,
            num_pixels=self.num_pixels + other.num_pixels,
            class_pixels={name: n + other.class_pixels[name] for name, n in self.class_pixels.items()},
            class_slices={name: n + other.class_slices[name] for name, n in self.class_slices.items()},
        )

    @property
    def num_with_lesion(self) -> int:
        return self.num_slices - self.num_lesion_free

    @property
    def shares(self) -> dict[str, float]:
        """Class name -> share of all pixels, which is also its mean share of a slice. Fails without slices."""
        return {name: n / self.num_pixels for name, n in self.class_pixels.items()}

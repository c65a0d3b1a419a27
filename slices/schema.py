"""Meaning of the channels of a joint slice: label values ↔ class indices ↔ label maps.

A joint slice is C contrasts and K label maps of one axial slice, stacked as [C + K, H, W]. Its Schema is stored in
every archive and snapshot. No other file knows the number of a channel. A lesion class has three forms: a label value
in NIfTI files, a class index in arrays (0 is the background), and a label map in a slice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dnnlib.config import optional, shorten
from dnnlib.errors import UserError

# Stored bytes.
OUTSIDE, DARKEST, BRIGHTEST = 0, 1, 255  # of a contrast: background, and the range inside the head
LABEL_OFF, LABEL_ON = 0, 255  # of a label map
MOST_CONTRASTS, MOST_CLASSES, MOST_REGIONS = 16, 15, 50
LONGEST_NAME = 255  # of a file, on most file systems
# Types for label values in NIfTI files; the first that fits is taken.
_LABEL_TYPES = (np.uint8, np.int16, np.int32, np.int64)


def is_plain_name(name: str) -> bool:
    """Whether a name can be part of a file name: printable, no separators, no leading dot or space, not too long."""
    return 0 < len(name) <= LONGEST_NAME and name.isprintable() and not set(name) & set("/\\:") and name[0] not in ". "


@dataclass(frozen=True)
class LesionClass:
    """One class of lesions."""

    name: str  # short, such as ED
    title: str  # for legends
    value: int  # label value in NIfTI files
    more_values: tuple[int, ...] = optional(())  # that mean the same when read; only `value` is written

    @property
    def values(self) -> tuple[int, ...]:
        """All label values that mean this class."""
        return (self.value, *self.more_values)


@dataclass(frozen=True)
class Region:
    """A union of lesion classes that evaluations report, for example WT, the whole tumor."""

    name: str
    classes: tuple[str, ...]  # names of lesion classes


@dataclass(frozen=True)
class Schema:
    """Names and order of the channels: the contrasts, then the label map of the background, then one per class.

    Without lesion classes there are no label maps at all: K = 0.
    """

    contrasts: tuple[str, ...]
    classes: tuple[LesionClass, ...] = ()
    regions: tuple[Region, ...] = ()
    ignored: tuple[int, ...] = optional(())  # values of NIfTI label maps that count as background

    def __post_init__(self) -> None:
        names = [*self.contrasts, *self.class_names]
        if not 1 <= len(self.contrasts) <= MOST_CONTRASTS:
            raise UserError(f"{len(self.contrasts)} contrasts; a schema has 1 to {MOST_CONTRASTS}")
        if len(self.classes) > MOST_CLASSES:
            raise UserError(f"{len(self.classes)} lesion classes; a schema has at most {MOST_CLASSES}")
        if len(self.regions) > MOST_REGIONS:
            raise UserError(f"{len(self.regions)} regions; a schema has at most {MOST_REGIONS}")
        if odd := [name for name in (*names, *(r.name for r in self.regions)) if not is_plain_name(name)]:
            raise UserError(
                f"{shorten(odd[0])} can't be a name of a contrast, a class or a region: it looks like a path, "
                "or is too long"
            )
        if odd := [c.title for c in self.classes if not c.title.isprintable() or len(c.title) > LONGEST_NAME]:
            raise UserError(f"{shorten(odd[0])} can't be the title of a class: expected one line of text, not too long")
        if len(set(names)) != len(names):
            raise UserError(f"the names of contrasts and classes must differ: {', '.join(names)}")
        values = [0, *self.ignored, *(value for c in self.classes for value in c.values)]
        if len(set(values)) < len(values):
            raise UserError("lesion classes need different label values, none of them 0 (the background)")
        if len({region.name for region in self.regions}) != len(self.regions):
            raise UserError(f"the names of regions must differ: {', '.join(r.name for r in self.regions)}")
        for region in self.regions:
            for name in region.classes:
                if name not in self.class_names:
                    shown = name if is_plain_name(name) else shorten(name)
                    raise UserError(f"region {region.name} names an unknown class: {shown}")

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @property
    def num_contrasts(self) -> int:
        """C."""
        return len(self.contrasts)

    @property
    def shown(self) -> int:
        """Index of the contrast that labels are drawn over: the last one, FLAIR for BraTS."""
        return self.num_contrasts - 1

    @property
    def num_maps(self) -> int:
        """K: one label map per class and one for the background; 0 for a schema without classes."""
        return len(self.classes) + 1 if self.classes else 0

    @property
    def num_channels(self) -> int:
        """C + K."""
        return self.num_contrasts + self.num_maps

    @property
    def channels(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[Region, ...]]:
        """The meaning of the channels, without label values and titles. Slices may be mixed if theirs are equal."""
        return self.contrasts, self.class_names, self.regions

    def region_indices(self, region: Region) -> list[int]:
        """Class indices (1-based; 0 is the background) that make up a region."""
        return [self.class_names.index(name) + 1 for name in region.classes]

    # --- label values <-> class indices

    def indices_from_values(self, label_map: np.ndarray) -> np.ndarray:
        """Label values of a NIfTI file -> class indices 0..K−1, uint8, same shape.

        Raises UserError naming the values that the schema doesn't know.
        """
        indices = np.zeros(label_map.shape, np.uint8)
        known = np.isin(label_map, (0, *self.ignored))
        for index, lesion_class in enumerate(self.classes, start=1):
            here = np.isin(label_map, lesion_class.values)
            indices[here] = index
            known |= here
        if not known.all():
            found = ", ".join(f"{v:g}" for v in np.unique(label_map[~known])[:5])
            expected = ", ".join(str(value) for c in self.classes for value in c.values)
            raise UserError(f"unknown label value {found}; expected 0 and {expected}")
        return indices

    def values_from_indices(self, indices: np.ndarray) -> np.ndarray:
        """Class indices -> label values for a NIfTI file, same shape; uint8 if they fit.

        Raises UserError if no integer type of NIfTI can hold them.
        """
        values = [0, *(c.value for c in self.classes)]
        for kind in _LABEL_TYPES:
            if np.iinfo(kind).min <= min(values) and max(values) <= np.iinfo(kind).max:
                return np.array(values, kind)[indices]
        raise UserError(f"the label values {', '.join(map(str, values))} don't fit into a NIfTI file")

    # --- class indices <-> label maps

    def join(self, contrasts: np.ndarray, class_indices: np.ndarray | None = None) -> np.ndarray:
        """uint8 contrasts [..., C, H, W] and class indices [..., H, W] -> stored joint slice [..., C + K, H, W].

        class_indices: not needed for a schema without classes.
        """
        if not self.num_maps:
            return contrasts
        assert class_indices is not None
        # [..., 1, H, W] == [K, 1, 1] -> [..., K, H, W]: the map of each class is on where the index is its number.
        one_hot = class_indices[..., None, :, :] == np.arange(self.num_maps).reshape(-1, 1, 1)
        maps = np.where(one_hot, np.uint8(LABEL_ON), np.uint8(LABEL_OFF))
        return np.concatenate([contrasts, maps], axis=-3)

    def split(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stored joint slice [..., C + K, H, W] -> contrasts [..., C, H, W] (a view), class indices [..., H, W]."""
        contrasts, maps = stored[..., : self.num_contrasts, :, :], stored[..., self.num_contrasts :, :, :]
        if not self.num_maps:
            return contrasts, np.zeros(stored.shape[:-3] + stored.shape[-2:], np.uint8)
        return contrasts, maps.argmax(axis=-3).astype(np.uint8)

    # --- words

    def describe(self) -> str:
        """Contrasts and classes in words."""
        classes = ", ".join(self.class_names) or "no classes"
        return f"{', '.join(self.contrasts)} | {classes}"

    def describe_channels(self) -> str:
        """All of `channels` in words, for messages about slices that can't be mixed."""
        regions = ", ".join(f"{region.name} = {' + '.join(region.classes)}" for region in self.regions)
        return f"{self.describe()} | {regions or 'no regions'}"


BRATS = Schema(
    contrasts=("t1", "t1ce", "t2", "flair"),
    classes=(
        LesionClass("NCR", "necrosis / non-enhancing", 1),
        LesionClass("ED", "edema", 2),
        LesionClass("ET", "enhancing tumor", 4),
    ),
    regions=(
        Region("WT", ("NCR", "ED", "ET")),
        Region("TC", ("NCR", "ET")),
        Region("ET", ("ET",)),
    ),
)

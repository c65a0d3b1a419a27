"""Outcome of a conversion for one archive: which cases were cut, what was left out, and what was odd."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from slices.class_areas import ClassAreas
from slices.convert.cases import Case
from slices.convert.cut import OUT_OF_VIEW
from slices.convert.cut_cases import CutRecord
from slices.pixels import PixelSize
from slices.provenance import Provenance
from slices.schema import Schema

UNREADABLE = "could not be read"


@dataclass(frozen=True)
class PlannedArchive:
    """An archive that a conversion is going to write, and what is known about it before anything is cut."""

    part: str | None  # TRAIN or TEST; None for a single archive
    path: Path
    choice: str  # which slices of a case to take, one of CHOICES
    lesion_free: float | None  # wanted share of slices with brain and without lesion; None: add none
    cases: tuple[Case, ...]
    left_out: Mapping[str, list[str]]  # reason -> patients
    remarks: Mapping[str, list[str]]  # remark -> cases
    known: Mapping[str, Provenance]  # case -> what an export wrote about it

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class Outcome:
    """The outcome of one archive. Everything else is derived from the fields."""

    archive: PlannedArchive
    schema: Schema
    records: Mapping[str, CutRecord]  # case -> what was cut from it; in the order of the cases
    errors: Mapping[str, str]  # case that could not be read -> why

    @property
    def name(self) -> str:
        return self.archive.name

    @functools.cached_property
    def cut(self) -> list[tuple[Case, CutRecord]]:
        """The cases that gave at least one slice."""
        found = ((case, self.records.get(case.name)) for case in self.archive.cases)
        return [(case, record) for case, record in found if record is not None and record.volume is not None]

    @functools.cached_property
    def left_out(self) -> dict[str, list[str]]:
        """Reason -> names of patients or cases that are not in the archive."""
        found = {reason: list(names) for reason, names in self.archive.left_out.items()}
        if self.errors:
            found[UNREADABLE] = list(self.errors)
        for name, record in self.records.items():
            if record.volume is None:
                found.setdefault(self._reason_against(record), []).append(name)
        return found

    def _reason_against(self, record: CutRecord) -> str:
        """Why a case gave no slice."""
        if self.archive.choice == "tumor" and record.lost.get(OUT_OF_VIEW) == 1:
            return "the whole lesion lies outside the field of view"
        return f"no slice chosen by '{self.archive.choice}'"

    @functools.cached_property
    def skipped(self) -> Counter[str]:
        """Reason -> number of slices that were not chosen."""
        return _sum(record.skipped for record in self.records.values())

    @functools.cached_property
    def remarks(self) -> dict[str, list[str]]:
        """Remark -> names of cases."""
        found = {remark: list(names) for remark, names in self.archive.remarks.items()}
        for name, record in self.records.items():
            for remark in (*record.counted, *record.remarks):
                found.setdefault(remark, []).append(name)
        return found

    @functools.cached_property
    def counted(self) -> Counter[str]:
        """Remark -> number of voxels."""
        return _sum(record.counted for record in self.records.values())

    @functools.cached_property
    def lost(self) -> dict[str, dict[str, float]]:
        """Remark -> name of a case -> share of its lesion voxels."""
        found: dict[str, dict[str, float]] = {}
        for name, record in self.records.items():
            for remark, share in record.lost.items():
                found.setdefault(remark, {})[name] = share
        return found

    @functools.cached_property
    def areas(self) -> ClassAreas:
        """Class areas of all slices in the archive."""
        return sum((record.areas for _, record in self.cut), ClassAreas.none(self.schema))

    @property
    def num_patients(self) -> int:
        return len({case.patient for case, _ in self.cut})

    @property
    def pixels(self) -> PixelSize:
        """Range of the slices' pixel sizes."""
        pixels = PixelSize.of(record.volume.pixel for _, record in self.cut if record.volume is not None)
        assert pixels is not None, "an archive without slices"
        return pixels


def _sum(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total

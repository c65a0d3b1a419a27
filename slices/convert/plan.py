"""Plan of a conversion: options and cases become one frozen record, before the first volume is read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from dnnlib import config
from dnnlib.errors import UserError
from dnnlib.text import name_some
from slices.archive.format import TEST, TRAIN
from slices.convert.cases import Case
from slices.convert.options import TEST_SLICES, ConvertOptions
from slices.convert.outcome import PlannedArchive
from slices.convert.recognition import Recognized
from slices.leaks import alike
from slices.provenance import read_provenance
from slices.schema import Schema
from slices.split import SPLIT_FILE, SPLIT_SEED, TEST_FRACTION, Split, draw_split, read_split


@dataclass(frozen=True)
class Settled:
    """Decisions on what options may leave open."""

    slices: str
    test_slices: str | None = None  # None for a single archive
    test_fraction: float | None = None  # None for a single archive, and if a split is given
    split_seed: int | None = None  # likewise


@dataclass(frozen=True)
class Conversion:
    """Everything that is decided before the first volume is read."""

    options: ConvertOptions  # as the user gave them
    settled: Settled
    found: Recognized
    cases: tuple[Case, ...]  # of the grade asked for, even if a given split leaves them out
    dest: Path  # the archive, or the folder of two archives
    archives: tuple[PlannedArchive, ...]
    split: Split | None  # None: a single archive

    @property
    def schema(self) -> Schema:
        return self.found.release.schema

    @property
    def folder(self) -> Path:
        """The folder in which everything is written."""
        return self.dest.parent if self.split is None else self.dest

    @property
    def paths(self) -> list[Path]:
        """All files that are written."""
        return [*(archive.path for archive in self.archives), *([self.dest / SPLIT_FILE] if self.split else [])]

    @property
    def settled_options(self) -> dict[str, Any]:
        """The options with all decisions, as stored in archives."""
        options = config.to_json(replace(self.options, split_file=None)) | config.to_json(self.settled)
        if self.options.head_rule.is_auto:
            options["head"] = None
        if self.options.split_file is not None:
            options["split_file"] = self.options.split_file.name
        return options


def plan(options: ConvertOptions, found: Recognized, dest: str | os.PathLike) -> Conversion:
    """Decide which archives a conversion of the found cases writes.

    dest: a name that ends in .zip for one archive, else a folder for train.zip, test.zip and split.json. Raises
    UserError for options that don't fit each other or the cases, and if patients of a test part would be trained on.
    """
    dest = Path(dest)
    single = dest.suffix.lower() == ".zip"
    settled = _settle(options, dest, single, found.release.schema)
    cases, left_out = _of_grade(found, options)
    split = None if single else _split(found, cases, options, settled)
    if split is None:
        drafts = [_Draft(None, dest, settled.slices, options.lesion_free, cases)]
    else:
        drafts = _drafts_of_parts(dest, cases, split, settled, options)
        neither = [case.patient for case in cases if case.patient not in {*split.train, *split.test}]
        left_out |= {"on neither side of the split file": neither} if neither else {}
    archives = tuple(_planned_archive(draft, drafts, found.source, left_out) for draft in drafts)
    return Conversion(options, settled, found, tuple(cases), dest, archives, split)


def _settle(options: ConvertOptions, dest: Path, single: bool, schema: Schema) -> Settled:
    """Decide what the options leave open. Raises UserError for options that would have no effect."""
    if not schema.num_maps and "tumor" in (options.slices, options.test_slices):
        raise UserError("--slices tumor needs label maps, but this data has none: choose brain or all")
    slices = options.slices or ("tumor" if schema.num_maps else "brain")
    if options.lesion_free and slices != "tumor":
        raise UserError(
            f"--lesion-free adds to slices with lesion, but --slices {slices} takes others as well: "
            "leave one of them out"
        )
    of_split = {name: getattr(options, name) for name in ("test_slices", "test_fraction", "split_seed", "split_file")}
    given = [_flag(name) for name, value in of_split.items() if value is not None]
    if single:
        if given:
            raise UserError(f"{given[0]} needs a folder as --dest, but {dest} is a single archive")
        return Settled(slices)
    test_slices = options.test_slices or TEST_SLICES
    if options.split_file is None:
        fraction = TEST_FRACTION if options.test_fraction is None else options.test_fraction
        seed = SPLIT_SEED if options.split_seed is None else options.split_seed
        return Settled(slices, test_slices, fraction, seed)
    if drawn := [flag for flag in given if flag in (_flag("test_fraction"), _flag("split_seed"))]:
        raise UserError(f"{drawn[0]} draws a split, --split-file gives one: leave one of them out")
    return Settled(slices, test_slices)


def _flag(name: str) -> str:
    """The command-line option of a field."""
    return "--" + name.replace("_", "-")


def _of_grade(found: Recognized, options: ConvertOptions) -> tuple[list[Case], dict[str, list[str]]]:
    """The cases of the grade asked for, and reason -> patients left out."""
    source, grade = found.source, options.grade
    chosen = [case for case in found.cases if grade in ("all", case.grade)]
    if not chosen:
        raise UserError(
            f"{source}: no case in {source.name}/{grade}, which --grade {grade} asks for; "
            "in a flat folder grades are unknown: use --grade all, or say them with --cases"
        )
    if options.class_by == "grade" and (bare := [case.name for case in chosen if not case.grade]):
        raise UserError(
            f"{source}: --class-by grade needs cases in {source.name}/HGG or LGG, or their grades by --cases; "
            f"unknown: {name_some(bare)}"
        )
    others = [case.patient for case in found.cases if grade not in ("all", case.grade)]
    return chosen, {f"grade is not {grade}": others} if others else {}


def _split(found: Recognized, cases: Sequence[Case], options: ConvertOptions, settled: Settled) -> Split:
    """Draw a split of the cases, or read it from --split-file."""
    patients = {case.patient for case in cases}
    if options.split_file is None:
        assert settled.test_fraction is not None and settled.split_seed is not None
        return draw_split(patients, settled.test_fraction, settled.split_seed)
    whole = read_split(options.split_file, {case.patient for case in found.cases})
    # The file may name patients of all grades; those of other grades are dropped.
    split = Split(
        train=tuple(name for name in whole.train if name in patients),
        test=tuple(name for name in whole.test if name in patients),
    )
    if not split.train or not split.test:
        raise UserError(f"{options.split_file}: leaves {'test' if split.train else 'train'} without a patient")
    return split


class _Draft(NamedTuple):
    """A planned archive without provenance. Its fields are those of PlannedArchive."""

    part: str | None
    path: Path
    choice: str
    lesion_free: float | None
    cases: list[Case]


def _drafts_of_parts(
    dest: Path, cases: Sequence[Case], split: Split, settled: Settled, options: ConvertOptions
) -> list[_Draft]:
    """Drafts of the archives for both parts of a split."""
    assert settled.test_slices is not None
    train, test = ([case for case in cases if case.patient in set(part)] for part in (split.train, split.test))
    return [
        _Draft(TRAIN, dest / f"{TRAIN}.zip", settled.slices, options.lesion_free, train),
        _Draft(TEST, dest / f"{TEST}.zip", settled.test_slices, None, test),
    ]


def _planned_archive(
    draft: _Draft, drafts: Sequence[_Draft], source: Path, left_out: Mapping[str, list[str]]
) -> PlannedArchive:
    """Complete a draft: add the provenance of its cases, and remarks on names like those of the other archive."""
    known = read_provenance(draft.cases, source)
    held_out = [name for name, one in known.items() if one.part == TEST]
    if draft.part == TRAIN and held_out:
        raise UserError(
            f"{source}: {name_some(held_out)}: a file beside them says that they were exported from the test part of a "
            f"split, so nothing may be trained on them, but this split puts them into {draft.path.name}: give the "
            "former split with --split-file, or convert them alone into a single archive, for testing"
        )
    remarks = {
        "of the test part of a former split, where it stays": held_out,
        "generated slices; the archive still knows whom their generator learned from": [
            name for name, one in known.items() if one.seen is not None
        ],
    }
    for other in drafts:
        if other is not draft:
            pairs = dict(alike([case.patient for case in draft.cases], [case.patient for case in other.cases]))
            remarks[f"named so much like one in {other.path.name} that they may be one patient"] = [
                case.name for case in draft.cases if case.patient in pairs
            ]
    return PlannedArchive(
        part=draft.part,
        path=draft.path,
        choice=draft.choice,
        lesion_free=draft.lesion_free,
        cases=tuple(draft.cases),
        left_out=left_out,
        remarks={remark: names for remark, names in remarks.items() if names},
        known=known,
    )

"""A conversion: planned from options and cases, cut case by case, written as one archive or as two and their split."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from dnnlib import config, files
from dnnlib.errors import UserError
from dnnlib.processes import map_in_order
from dnnlib.sources import sources_sha256
from dnnlib.staged import Staged
from dnnlib.text import count, name_some
from slices.archive.format import TEST, TRAIN, pack_slice
from slices.archive.made import describe_making
from slices.archive.writer import ArchiveWriter
from slices.areas import ClassAreas
from slices.convert.cases import Case
from slices.convert.cut import OUT_OF_VIEW, cut_case
from slices.convert.cut_cases import CutCase, CutRecord, Workplace, origin_of, write_cut_case
from slices.convert.options import ON_ERROR, ConvertOptions
from slices.convert.outcome import Outcome, Target
from slices.convert.recognition import Recognized
from slices.convert.releases import GRADES, OWN
from slices.leaks import alike
from slices.provenance import read_provenance
from slices.schema import Schema
from slices.split import SPLIT_FILE, Split, draw_split, read_split

# Options that a cut case depends on.
_CUTTING = ("resolution", "fov", "head", "slices", "test_slices", "min_tumor_pixels", "lesion_free")


@dataclass(frozen=True)
class Settled:
    """What options may leave open, decided. The last three are None for a single archive."""

    slices: str
    test_slices: str | None = None
    test_fraction: float | None = None  # None as well if a split is given
    split_seed: int | None = None  # None as well if a split is given


@dataclass(frozen=True)
class Conversion:
    """All that is decided of a conversion before the first volume is read."""

    options: ConvertOptions  # as given
    settled: Settled
    found: Recognized
    cases: tuple[Case, ...]  # of the grade asked for, in no archive if the split leaves them out
    dest: Path  # the archive, or the folder of two
    targets: tuple[Target, ...]
    split: Split | None  # None: a single archive

    @property
    def schema(self) -> Schema:
        return self.found.release.schema

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return self.dest.parent if self.split is None else self.dest

    @property
    def paths(self) -> list[Path]:
        """What is written."""
        return [*(target.path for target in self.targets), *([self.dest / SPLIT_FILE] if self.split else [])]

    @property
    def settled_options(self) -> dict[str, Any]:
        """The options, decided, as an archive tells them."""
        options = config.to_json(replace(self.options, split_file=None)) | config.to_json(self.settled)
        if self.options.head_rule.is_auto:
            options["head"] = None
        if self.options.split_file is not None:
            options["split_file"] = self.options.split_file.name
        return options


def convert(
    conversion: Conversion, workers: int = 1, force: bool = False, on_error: str = "fail"
) -> tuple[Outcome, ...]:
    """Cut all cases and write the archives of a conversion. Returns what came of each archive.

    on_error: one of ON_ERROR; 'skip' leaves out cases that can't be read. The files appear when all are complete; what
    they hold depends on neither `workers` nor the destination. A conversion that was interrupted goes on where it
    stopped. Raises UserError, naming the file, for what doesn't fit.
    """
    assert on_error in ON_ERROR, on_error
    if on_error == "fail":
        for case in conversion.cases:  # before the long work begins
            case.require_files()
    workplace = _workplace(conversion)
    if not force:
        workplace.remove_if_done(conversion.paths)
    for path in conversion.paths:
        files.refuse_existing(path, force)
    with files.folder_for(conversion.folder), workplace, _saying_what_is_kept(workplace, len(conversion.cases)):
        outcomes = cut(conversion, workplace, workers, on_error)
        write(conversion, outcomes, workplace, force)
        workplace.remove()
    return outcomes


# --- plan -------------------------------------------------------------------------------------------------------------


def plan(options: ConvertOptions, found: Recognized, dest: str | os.PathLike) -> Conversion:
    """Decide what a conversion of the cases that were found writes.

    dest: a name that ends in .zip for one archive, else a folder for train.zip, test.zip and split.json. Raises
    UserError for options that fit neither each other nor the cases, and if patients held out for testing would train.
    """
    dest = Path(dest)
    single = dest.suffix.lower() == ".zip"
    settled = _settle(options, dest, single, found.release.schema)
    cases, left_out = _of_grade(found, options)
    split = None if single else _split(found, cases, options, settled)
    if split is None:
        drafts = [_Draft(None, dest, settled.slices, options.lesion_free, cases)]
    else:
        drafts = _drafts_of_sides(dest, cases, split, settled, options)
        neither = [case.patient for case in cases if case.patient not in {*split.train, *split.test}]
        left_out |= {"on neither side of the split file": neither} if neither else {}
    targets = tuple(_target(draft, drafts, found.source, left_out) for draft in drafts)
    return Conversion(options, settled, found, tuple(cases), dest, targets, split)


def _settle(options: ConvertOptions, dest: Path, single: bool, schema: Schema) -> Settled:
    """Decide what was left open, and refuse what would change nothing."""
    if not schema.num_maps and "tumor" in (options.slices, options.test_slices):
        raise UserError("--slices tumor needs label maps, which this data has none of: choose brain or all")
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
    test_slices = options.test_slices or "all"
    if options.split_file is None:
        fraction = 0.1 if options.test_fraction is None else options.test_fraction
        return Settled(slices, test_slices, fraction, options.split_seed or 0)
    if drawn := [flag for flag in given if flag in (_flag("test_fraction"), _flag("split_seed"))]:
        raise UserError(f"{drawn[0]} draws a split, --split-file gives one: leave one of them out")
    return Settled(slices, test_slices)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _of_grade(found: Recognized, options: ConvertOptions) -> tuple[list[Case], dict[str, list[str]]]:
    """The cases of the grade asked for, and the patients left out."""
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
    patients = {case.patient for case in cases}
    if options.split_file is None:
        assert settled.test_fraction is not None and settled.split_seed is not None
        return draw_split(patients, settled.test_fraction, settled.split_seed)
    whole = read_split(options.split_file, {case.patient for case in found.cases})
    # --grade takes its share of a split of all grades.
    split = Split(
        train=tuple(name for name in whole.train if name in patients),
        test=tuple(name for name in whole.test if name in patients),
    )
    if not split.train or not split.test:
        raise UserError(f"{options.split_file}: leaves {'test' if split.train else 'train'} without a patient")
    return split


class _Draft(NamedTuple):
    """A target before it is known what exported files tell of its cases."""

    side: str | None
    path: Path
    choice: str
    lesion_free: float | None
    cases: list[Case]


def _drafts_of_sides(
    dest: Path, cases: Sequence[Case], split: Split, settled: Settled, options: ConvertOptions
) -> list[_Draft]:
    assert settled.test_slices is not None
    train, test = ([case for case in cases if case.patient in set(side)] for side in (split.train, split.test))
    return [
        _Draft(TRAIN, dest / f"{TRAIN}.zip", settled.slices, options.lesion_free, train),
        _Draft(TEST, dest / f"{TEST}.zip", settled.test_slices, None, test),
    ]


def _target(draft: _Draft, drafts: Sequence[_Draft], source: Path, left_out: Mapping[str, list[str]]) -> Target:
    """Complete a target with what exported files tell of its cases, and with names like those of the other side."""
    known = read_provenance(draft.cases, source)
    held_out = [name for name, one in known.items() if one.part == TEST]
    if draft.side == TRAIN and held_out:
        raise UserError(
            f"{source}: {name_some(held_out)}: exported from the test part of a split, as a file beside them says, "
            f"so nothing may be trained on them, but this split puts them into {draft.path.name}: give the former "
            "split with --split-file, or convert them by themselves into one archive, which is then one for testing"
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
    return Target(
        side=draft.side,
        path=draft.path,
        choice=draft.choice,
        lesion_free=draft.lesion_free,
        cases=tuple(draft.cases),
        left_out=left_out,
        remarks={remark: names for remark, names in remarks.items() if names},
        known=known,
    )


# --- cut --------------------------------------------------------------------------------------------------------------


def _workplace(conversion: Conversion) -> Workplace:
    options = conversion.settled_options
    job = {
        "sources": sources_sha256("dnnlib", "slices"),
        "schema": config.to_json(conversion.schema),
        "options": {name: options[name] for name in _CUTTING},
    }
    dest = conversion.dest
    return Workplace(dest / ".converting" if conversion.split else dest.with_name(f".{dest.name}.converting"), job)


@contextlib.contextmanager
def _saying_what_is_kept(workplace: Workplace, total: int) -> Iterator[None]:
    """If the block fails, tell the user how many cases need not be cut again."""
    try:
        yield
    except BaseException:
        if done := len(list(workplace.folder.glob("*.zip"))):
            tqdm.write(
                f"{done} of {count(total, 'case')} are kept in {workplace.folder}: the same command goes on from there",
                file=sys.stderr,
            )
        raise


class _Job(NamedTuple):
    """One case to be cut, and where it goes."""

    case: Case
    choice: str
    lesion_free: float | None
    path: Path


def cut(conversion: Conversion, workplace: Workplace, workers: int, on_error: str) -> tuple[Outcome, ...]:
    """Cut every case of every target that an earlier call did not. Returns what came of each target.

    Raises UserError, and keeps no cut cases, if there is no slice for one of them.
    """
    cases = [(target, case) for target in conversion.targets for case in target.cases]
    left = [(target, case) for target, case in cases if not workplace.finished(target.side, case)]
    if len(left) < len(cases):
        done = len(cases) - len(left)
        tqdm.write(f"going on: {done} of {count(len(cases), 'case')} were cut by an earlier call", file=sys.stderr)
    jobs = [_Job(case, target.choice, target.lesion_free, workplace.path(target.side, case)) for target, case in left]
    results = map_in_order(partial(_cut_job, conversion.schema, conversion.options), jobs, workers)
    errors: dict[Path, dict[str, str]] = {target.path: {} for target in conversion.targets}
    with (
        contextlib.closing(results),
        tqdm(total=len(cases), initial=len(cases) - len(jobs), desc="converting", unit="case") as bar,
    ):
        for (target, case), error in zip(left, results, strict=True):
            bar.update()
            if error and on_error == "fail":
                advice = "; --on-error skip leaves out what can't be read" if len(cases) > 1 else ""
                raise UserError(f"{error}{advice}")
            if error:
                errors[target.path][case.name] = error
                bar.write(f"left out: {error}", file=sys.stderr)
    outcomes = tuple(_outcome(conversion, target, workplace, errors[target.path]) for target in conversion.targets)
    for outcome in outcomes:
        if not outcome.cut:
            workplace.remove()
            raise UserError(_nothing(conversion, outcome))
    return outcomes


def _cut_job(schema: Schema, options: ConvertOptions, job: _Job) -> str | None:
    """Cut a case, in a process of its own. Returns what was wrong with it, if anything."""
    try:
        origin = origin_of(job.case)
        chosen = cut_case(job.case, job.choice, schema, options, job.lesion_free)
    except UserError as error:
        return str(error)
    record = CutRecord(
        origin=origin,
        volume=chosen.volume if chosen.indices else None,
        indices=chosen.indices,
        areas=ClassAreas.of(chosen.classes, schema),
        skipped=chosen.skipped,
        remarks=chosen.remarks,
        counted=chosen.counted,
        lost=chosen.lost,
    )
    members = [pack_slice(schema.join(*pair)) for pair in zip(chosen.contrasts, chosen.classes, strict=True)]
    write_cut_case(job.path, members, record)
    return None


def _outcome(conversion: Conversion, target: Target, workplace: Workplace, errors: Mapping[str, str]) -> Outcome:
    records = {
        case.name: CutCase.open(workplace.path(target.side, case)).record
        for case in target.cases
        if case.name not in errors
    }
    return Outcome(target, conversion.schema, records, errors)


def _nothing(conversion: Conversion, outcome: Outcome) -> str:
    """What to say if there is no slice for an archive."""
    target, options, source = outcome.target, conversion.options, conversion.found.source
    cases = len(target.cases)
    nobody = (
        f"none of the {cases} cases for {target.name}" if cases > 1 else f"not even the only case for {target.name}"
    )
    if outcome.errors and not outcome.records:
        advice = "; --split-seed or --split-file chooses others" if target.side else ""
        return f"{source}: {nobody} can be read{advice}: {next(iter(outcome.errors.values()))}"
    wanted = f"a lesion of {options.min_tumor_pixels} or more pixels" if target.choice == "tumor" else "a brain"
    option = "--test-slices" if target.side == TEST else "--slices"
    view, wider = (f" and --fov {options.fov:g}", "a larger --fov, ") if OUT_OF_VIEW in outcome.lost else ("", "")
    return (
        f"{source}: {nobody} has a slice with {wanted} "
        f"at --resolution {options.resolution}{view}: choose {option} all, {wider}or other patients"
    )


# --- write ------------------------------------------------------------------------------------------------------------


def write(conversion: Conversion, outcomes: Sequence[Outcome], workplace: Workplace, force: bool) -> None:
    """Put the archives together from the cut cases. They appear when all are complete, with the split."""
    with Staged(conversion.paths[0], force) as staged:
        for outcome in outcomes:
            _write_archive(conversion, outcome, workplace, staged.place(outcome.target.path))
        if conversion.split is not None:
            staged.write(conversion.dest / SPLIT_FILE, files.json_bytes(conversion.split))


def _write_archive(conversion: Conversion, outcome: Outcome, workplace: Workplace, place: Path) -> None:
    target, options = outcome.target, conversion.options
    label_names = GRADES if options.class_by == "grade" else None
    seen = {patient for name in outcome.records for patient in target.known[name].seen or ()}
    made = _describe_making(conversion, outcome)
    most = conversion.schema.num_channels * options.resolution**2 + 1024  # bytes of a slice, unpacked
    with ArchiveWriter(place, conversion.schema, options.resolution, made, label_names, seen) as writer:
        for case, record in outcome.cut:
            assert record.volume is not None
            writer.volumes[case.name] = record.volume
            side = target.side or target.known[case.name].part
            label = None if label_names is None or case.grade is None else label_names.index(case.grade)
            members = CutCase.open(workplace.path(target.side, case)).members(most)
            for member, index in zip(members, record.indices, strict=True):
                writer.add_packed(member, patient=case.patient, part=side, volume=case.name, index=index, label=label)


def _describe_making(conversion: Conversion, outcome: Outcome) -> dict[str, Any]:
    """How an archive came to be."""
    release, found, split = conversion.found.release, conversion.found, conversion.split
    options = conversion.settled_options | {
        "source": found.source.absolute().name,
        "release": release.name,
        "cases": found.table,
    }
    if release.name == OWN:  # no table says how these were read
        options |= {
            "contrasts": dict(release.names),
            "pattern": release.pattern,
            "mask_pattern": release.mask_pattern,
        }
    skipped = {
        "patients": outcome.left_out,
        "slices": dict(sorted(outcome.skipped.items())),
        **({"files": found.passed_over} if found.passed_over else {}),
    }
    return describe_making(
        "dataset_tool.py convert",
        {name: value for name, value in options.items() if value is not None},
        split=None if split is None else {"part": outcome.target.side, **config.to_json(split)},
        skipped=skipped,
        remarks=outcome.remarks,
        **({"voxels": dict(outcome.counted)} if outcome.counted else {}),
        **({"lost": outcome.lost} if outcome.lost else {}),
    )

"""The conversion of a release: from its cases to archives."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from dnnlib import config, files
from dnnlib.errors import UserError
from dnnlib.processes import map_in_order
from dnnlib.sources import sources_sha256
from dnnlib.staged import Staged
from dnnlib.text import count, name_some, tool_version
from slices.archive.format import TEST, TRAIN, pack_slice
from slices.archive.writer import ArchiveWriter
from slices.areas import ClassAreas
from slices.convert.cases import Case
from slices.convert.cut import OUT_OF_VIEW, cut_case
from slices.convert.cut_cases import CaseRecord, PartReader, Workplace, origin_of, write_part
from slices.convert.options import ConvertOptions
from slices.convert.recognition import Recognised
from slices.convert.releases import GRADES, OWN
from slices.leaks import alike
from slices.provenance import Provenance, read_provenance
from slices.schema import Schema
from slices.split import SPLIT_FILE, Split, draw_split, read_split

# Options that a cut case depends on.
_CUTTING = ("resolution", "fov", "head", "slices", "test_slices", "min_tumor_pixels", "lesion_free")
UNREADABLE = "could not be read"


@dataclass
class Tally:
    """The patients of an archive, and the class areas of its slices."""

    schema: Schema
    areas: ClassAreas = field(init=False)
    patients: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.areas = ClassAreas.none(self.schema)

    def add(self, patient: str, areas: ClassAreas) -> None:
        """Count slices of a patient."""
        self.patients.add(patient)
        self.areas += areas


@dataclass
class Part:
    """One archive of a conversion: its cases, which slices are taken, and what came of it.

    side: TRAIN or TEST, None for a single archive. left_out: reason -> patients; skipped: reason -> slices; remarks:
    remark -> cases; counted: remark -> voxels; lost: remark -> case -> share of its lesion's volume; errors: what was
    wrong with cases that could not be read; lesion_free: as in ConvertOptions. known: case -> what exported files tell
    of it.
    """

    side: str | None
    path: Path
    choice: str
    cases: list[Case]
    tally: Tally
    left_out: dict[str, list[str]] = field(default_factory=dict)
    skipped: Counter = field(default_factory=Counter)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    counted: Counter = field(default_factory=Counter)
    lost: dict[str, dict[str, float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    lesion_free: float | None = None
    pixels: set[float] = field(default_factory=set)  # edges of pixels, mm
    known: dict[str, Provenance] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def readable(self) -> list[Case]:
        """The cases that were cut."""
        unreadable = set(self.left_out.get(UNREADABLE, ()))
        return [case for case in self.cases if case.name not in unreadable]


def convert_release(
    source: Path,
    dest: Path,
    found: Recognised,
    options: ConvertOptions,
    workers: int = 1,
    force: bool = False,
    on_error: str = "fail",
) -> list[Part]:
    """Convert cases into one archive, `dest` ending in .zip, or into train.zip, test.zip and split.json.

    found: what `find_cases` made of the source. on_error: one of ON_ERROR; 'skip' leaves out cases that can't be read.
    The files appear when all are complete, split.json last; what they hold depends on neither `workers` nor `dest`. A
    conversion that was interrupted goes on where it stopped. Raises UserError, naming the file, for what doesn't fit.
    """
    source, dest, schema = Path(source), Path(dest), found.release.schema
    single = dest.suffix.lower() == ".zip"
    options = _settle(options, dest, single, schema)
    cases, left_out = _of_grade(found.cases, source, options)
    split = None if single else _split(found.cases, cases, options)
    parts = _parts(dest, cases, split, options, schema, left_out)
    _remember(parts, source)
    if on_error == "fail":
        for case in cases:  # before the long work begins
            case.require_files()
    targets = [part.path for part in parts] + ([] if single else [dest / SPLIT_FILE])
    job = {
        "sources": sources_sha256("dnnlib", "slices"),
        "schema": config.to_json(schema),
        "options": {name: getattr(options, name) for name in _CUTTING},
    }
    workplace = Workplace(dest.with_name(f".{dest.name}.converting") if single else dest / ".converting", job)
    if not force:
        workplace.remove_if_done(targets)
    for target in targets:
        files.refuse_existing(target, force)
    with files.folder_for(dest.parent if single else dest), workplace, _saying_what_is_kept(workplace, len(cases)):
        _cut_all(parts, workplace, schema, options, workers, on_error)
        for part in parts:
            _describe(part, workplace, source, options)
        with Staged(targets[0], force) as staged:
            _write_archives(parts, split, options, found, workplace, source, staged)
            if split:
                staged.write(dest / SPLIT_FILE, files.json_bytes(split))
        workplace.remove()
    return parts


def _settle(options: ConvertOptions, dest: Path, single: bool, schema: Schema) -> ConvertOptions:
    """Fill in what was left open, and refuse what would change nothing."""
    if not schema.num_maps and "tumor" in (options.slices, options.test_slices):
        raise UserError("--slices tumor needs label maps, which this data has none of: choose brain or all")
    options = replace(options, slices=options.slices or ("tumor" if schema.num_maps else "brain"))
    if options.lesion_free and options.slices != "tumor":
        raise UserError(
            f"--lesion-free adds to slices with lesion, but --slices {options.slices} takes others as well: "
            "leave one of them out"
        )
    defaults = {"test_slices": "all", "test_fraction": 0.1, "split_seed": 0}
    given = [name for name in (*defaults, "split_file") if getattr(options, name) is not None]
    if single:
        if given:
            raise UserError(f"{_flag(given[0])} needs a folder as --dest, but {dest} is a single archive")
        return options
    if options.split_file is not None:
        defaults = {"test_slices": "all"}
        if drawn := [name for name in given if name in ("test_fraction", "split_seed")]:
            raise UserError(f"{_flag(drawn[0])} draws a split, --split-file gives one: leave one of them out")
    return replace(options, **{name: value for name, value in defaults.items() if name not in given})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _of_grade(found: list[Case], source: Path, options: ConvertOptions) -> tuple[list[Case], dict[str, list[str]]]:
    """The cases of the grade asked for, and the patients left out."""
    chosen = [case for case in found if options.grade in ("all", case.grade)]
    if not chosen:
        raise UserError(
            f"{source}: no case in {source.name}/{options.grade}, which --grade {options.grade} asks for; "
            "in a flat folder grades are unknown: use --grade all, or say them with --cases"
        )
    if options.class_by == "grade" and (bare := [case.name for case in chosen if not case.grade]):
        raise UserError(
            f"{source}: --class-by grade needs cases in {source.name}/HGG or LGG, or their grades by --cases; "
            f"unknown: {name_some(bare)}"
        )
    others = [case.patient for case in found if case not in chosen]
    return chosen, {f"grade is not {options.grade}": others} if others else {}


def _split(found: list[Case], cases: list[Case], options: ConvertOptions) -> Split:
    patients = {case.patient for case in cases}
    if options.split_file is None:
        return draw_split(patients, options.test_fraction, options.split_seed)
    split = read_split(Path(options.split_file), {case.patient for case in found})
    # Of a split of all grades, --grade takes its share.
    split = Split(*(tuple(name for name in side if name in patients) for side in (split.train, split.test)))
    if not split.train or not split.test:
        raise UserError(f"{options.split_file}: leaves {'test' if split.train else 'train'} without a patient")
    return split


def _parts(
    dest: Path,
    cases: list[Case],
    split: Split | None,
    options: ConvertOptions,
    schema: Schema,
    left_out: dict[str, list[str]],
) -> list[Part]:
    if split is None:
        return [Part(None, dest, options.slices, cases, Tally(schema), left_out, lesion_free=options.lesion_free)]
    neither = [case.patient for case in cases if case.patient not in (*split.train, *split.test)]
    if neither:
        left_out = left_out | {"on neither side of the split file": neither}
    return [
        Part(
            side=side,
            path=dest / f"{side}.zip",
            choice=choice,
            cases=[case for case in cases if case.patient in patients],
            tally=Tally(schema),
            left_out=dict(left_out),
            lesion_free=lesion_free,
        )
        for side, patients, choice, lesion_free in (
            (TRAIN, set(split.train), options.slices, options.lesion_free),
            (TEST, set(split.test), options.test_slices, None),
        )
    ]


def _remember(parts: list[Part], source: Path) -> None:
    """Learn what exported files tell of their cases. Raises UserError if patients held out for testing would train."""
    for part in parts:
        part.known = read_provenance(part.cases, source)
        held_out = [name for name, known in part.known.items() if known.part == TEST]
        if part.side == TRAIN and held_out:
            raise UserError(
                f"{source}: {name_some(held_out)}: exported from the test part of a split, as a file beside them says, "
                f"so nothing may be trained on them, but this split puts them into {part.name}: give the former split "
                "with --split-file, or convert them by themselves into one archive, which is then one for testing"
            )
        generated = [name for name, known in part.known.items() if known.seen is not None]
        for remark, names in (
            ("of the test part of a former split, where it stays", held_out),
            ("generated slices; the archive still knows whom their generator learned from", generated),
        ):
            if names:
                part.remarks[remark] = names
    for part, other in itertools.permutations(parts, 2):
        pairs = alike([case.patient for case in part.cases], [case.patient for case in other.cases])
        if names := [case.name for case in part.cases if case.patient in dict(pairs)]:
            part.remarks[f"named so much like one in {other.name} that they may be one patient"] = names


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
    """One case to be cut, and where its part goes."""

    case: Case
    choice: str
    lesion_free: float | None
    path: Path


def _cut_all(
    parts: list[Part], workplace: Workplace, schema: Schema, options: ConvertOptions, workers: int, on_error: str
) -> None:
    """Cut every case of every part that an earlier call did not."""
    jobs = [
        (part, _Job(case, part.choice, part.lesion_free, workplace.path(part.side, case)))
        for part in parts
        for case in part.cases
        if not workplace.finished(part.side, case)
    ]
    total = sum(len(part.cases) for part in parts)
    if len(jobs) < total:
        tqdm.write(
            f"going on: {total - len(jobs)} of {count(total, 'case')} were cut by an earlier call", file=sys.stderr
        )
    results = map_in_order(partial(_cut_job, schema, options), [job for _, job in jobs], workers)
    with (
        contextlib.closing(results),
        tqdm(total=total, initial=total - len(jobs), desc="converting", unit="case") as bar,
    ):
        for (part, job), error in zip(jobs, results, strict=True):
            bar.update()
            if error and on_error == "fail":
                raise UserError(f"{error}; --on-error skip leaves out what can't be read" if total > 1 else error)
            if error:
                part.errors.append(error)
                part.left_out.setdefault(UNREADABLE, []).append(job.case.name)
                bar.write(f"left out: {error}", file=sys.stderr)


def _cut_job(schema: Schema, options: ConvertOptions, job: _Job) -> str | None:
    """Cut a case, in a process of its own. Returns what was wrong with it, if anything."""
    try:
        origin = origin_of(job.case)
        cut = cut_case(job.case, job.choice, schema, options, job.lesion_free)
    except UserError as error:
        return str(error)
    record = CaseRecord(
        origin=origin,
        volume=cut.volume if cut.indices else None,
        indices=cut.indices,
        areas=ClassAreas.of(cut.classes, schema),
        skipped=cut.skipped,
        remarks=cut.remarks,
        counted=cut.counted,
        lost=cut.lost,
    )
    members = [pack_slice(schema.join(*pair)) for pair in zip(cut.contrasts, cut.classes, strict=True)]
    write_part(job.path, members, record)
    return None


def _describe(part: Part, workplace: Workplace, source: Path, options: ConvertOptions) -> None:
    """Fill in what came of a part. Raises UserError, and keeps no cut cases, if that is nothing."""
    for case in part.readable:
        record = PartReader.open(workplace.path(part.side, case)).record
        part.skipped.update(record.skipped)
        for remark in (*record.counted, *record.remarks):
            part.remarks.setdefault(remark, []).append(case.name)
        part.counted.update(record.counted)
        for remark, share in record.lost.items():
            part.lost.setdefault(remark, {})[case.name] = share
        if record.indices:
            part.tally.add(case.patient, record.areas)
            part.pixels.add(record.volume.pixel)
        else:
            unseen = part.choice == "tumor" and record.lost.get(OUT_OF_VIEW) == 1
            reason = (
                "the whole lesion lies outside the field of view" if unseen else f"no slice chosen by '{part.choice}'"
            )
            part.left_out.setdefault(reason, []).append(case.name)
    if not part.tally.areas.num_slices:
        workplace.remove()
        raise UserError(_nothing(part, source, options))


def _write_archives(
    parts: list[Part],
    split: Split | None,
    options: ConvertOptions,
    found: Recognised,
    workplace: Workplace,
    source: Path,
    staged: Staged,
) -> None:
    """Put the archives together from the cut cases."""
    schema = found.release.schema
    names = GRADES if options.class_by == "grade" else None
    for part in parts:
        made = _made(part, split, options, found, source)
        seen = {patient for case in part.readable for patient in part.known[case.name].seen or ()}
        with ArchiveWriter(staged.place(part.path), schema, options.resolution, made, names, seen) as writer:
            for case in part.readable:
                side = part.side or part.known[case.name].part
                _append(case, PartReader.open(workplace.path(part.side, case)), side, writer, options)


def _append(case: Case, cut: PartReader, side: str | None, writer: ArchiveWriter, options: ConvertOptions) -> None:
    """Append the slices of a cut case to an archive."""
    if not cut.record.indices:
        return
    writer.volumes[case.name] = cut.record.volume
    label = GRADES.index(case.grade) if options.class_by == "grade" else None
    most = writer.schema.num_channels * options.resolution**2 + 1024
    for member, index in zip(cut.members(most), cut.record.indices, strict=True):
        writer.add_packed(member, patient=case.patient, part=side, volume=case.name, index=index, label=label)


def _nothing(part: Part, source: Path, options: ConvertOptions) -> str:
    cases = len(part.cases)
    nobody = f"none of the {cases} cases for {part.name}" if cases > 1 else f"not even the only case for {part.name}"
    if unreadable := part.left_out.get(UNREADABLE):
        if len(unreadable) == cases:
            advice = "; --split-seed or --split-file chooses others" if part.side else ""
            return f"{source}: {nobody} can be read{advice}: {part.errors[0]}"
    wanted = f"a lesion of {options.min_tumor_pixels} or more pixels" if part.choice == "tumor" else "a brain"
    option = "--test-slices" if part.side == TEST else "--slices"
    view, wider = (f" and --fov {options.fov:g}", "a larger --fov, ") if OUT_OF_VIEW in part.lost else ("", "")
    return (
        f"{source}: {nobody} has a slice with {wanted} "
        f"at --resolution {options.resolution}{view}: choose {option} all, {wider}or other patients"
    )


def _made(part: Part, split: Split | None, options: ConvertOptions, found: Recognised, source: Path) -> dict[str, Any]:
    """How an archive came to be. Names of folders only: where they lay is nobody's business."""
    shown = config.to_json(options) | {"source": source.absolute().name, "release": found.release.name}
    if options.split_file:
        shown["split_file"] = Path(options.split_file).name
    shown["cases"] = found.table
    if found.release.name == OWN:  # no table says how these were read
        release = found.release
        shown |= {
            "contrasts": dict(release.names),
            "pattern": release.pattern,
            "mask_pattern": release.mask_pattern,
        }
    return {
        "version": tool_version(),
        "command": "dataset_tool.py convert",
        "options": {name: value for name, value in shown.items() if value is not None},
        "split": None if split is None else {"part": part.side, **config.to_json(split)},
        "skipped": {
            "patients": part.left_out,
            "slices": dict(sorted(part.skipped.items())),
            **({"files": found.passed_over} if found.passed_over else {}),
        },
        "remarks": part.remarks,
        **({"voxels": dict(part.counted)} if part.counted else {}),
        **({"lost": part.lost} if part.lost else {}),
    }

"""Execution of a planned conversion: cut all cases, then write one archive, or two and their split."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from dnnlib import config, files
from dnnlib.code_hash import sources_sha256
from dnnlib.errors import UserError
from dnnlib.processes import map_in_order
from dnnlib.publish import Staged
from dnnlib.text import count
from slices.archive.format import TEST, pack_slice
from slices.archive.history import CONVERT, describe_making
from slices.archive.writer import ArchiveWriter
from slices.class_areas import ClassAreas
from slices.convert.cases import Case
from slices.convert.cut import OUT_OF_VIEW, cut_case
from slices.convert.cut_cases import CutCase, CutRecord, Workplace, origin_of, write_cut_case
from slices.convert.options import ConvertOptions
from slices.convert.outcome import Outcome, PlannedArchive
from slices.convert.plan import Conversion
from slices.convert.releases import GRADES, OWN
from slices.convert.source import ON_ERROR
from slices.schema import Schema
from slices.split import SPLIT_FILE

# Options that a cut case depends on.
_CUTTING = ("resolution", "fov", "head", "slices", "test_slices", "min_tumor_pixels", "lesion_free")


def convert(
    conversion: Conversion, workers: int = 1, force: bool = False, on_error: str = "fail"
) -> tuple[Outcome, ...]:
    """Cut all cases and write the archives of a conversion. Returns the outcome of each archive.

    on_error: one of ON_ERROR; 'skip' leaves out cases that can't be read. The files appear when all are complete. Their
    content depends on neither `workers` nor the destination. An interrupted conversion continues where it stopped.
    Raises UserError naming the file if a case can't be read, and for existing files without `force`.
    """
    assert on_error in ON_ERROR, on_error
    if on_error == "fail":
        for case in conversion.cases:  # before the long work starts
            case.require_files()
    workplace = _workplace(conversion)
    if not force:
        workplace.remove_if_done(conversion.paths)
    for path in conversion.paths:
        files.refuse_existing(path, force)
    # The workplace keeps cut cases if anything below fails.
    with files.folder_for(conversion.folder), workplace, _saying_what_is_kept(workplace, len(conversion.cases)):
        outcomes = cut(conversion, workplace, workers, on_error)
        write(conversion, outcomes, workplace, force)
        workplace.remove()
    return outcomes


# --- cut --------------------------------------------------------------------------------------------------------------


def _workplace(conversion: Conversion) -> Workplace:
    """The folder for cut cases: beside a single archive, or inside the folder of two."""
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
    """If the block fails, tell the user how many cases are already cut and kept."""
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
    """One case to be cut, for one archive."""

    case: Case
    choice: str  # which slices, as in PlannedArchive
    lesion_free: float | None  # as in PlannedArchive
    path: Path  # of the cut case


def cut(conversion: Conversion, workplace: Workplace, workers: int, on_error: str) -> tuple[Outcome, ...]:
    """Cut every case that an earlier call has not cut. Returns the outcome of each archive.

    Raises UserError if an archive would get no slice. The cut cases are removed then, because they are of no use.
    """
    cases = [(archive, case) for archive in conversion.archives for case in archive.cases]
    left = [(archive, case) for archive, case in cases if not workplace.finished(archive.part, case)]
    if len(left) < len(cases):
        done = len(cases) - len(left)
        tqdm.write(f"going on: {done} of {count(len(cases), 'case')} were cut by an earlier call", file=sys.stderr)
    jobs = [
        _Job(case, archive.choice, archive.lesion_free, workplace.path(archive.part, case)) for archive, case in left
    ]
    results = map_in_order(partial(_cut_job, conversion.schema, conversion.options), jobs, workers)
    errors: dict[Path, dict[str, str]] = {archive.path: {} for archive in conversion.archives}
    with (
        contextlib.closing(results),  # stops the workers if a case fails
        tqdm(total=len(cases), initial=len(cases) - len(jobs), desc="converting", unit="case") as bar,
    ):
        for (archive, case), error in zip(left, results, strict=True):
            bar.update()
            if error and on_error == "fail":
                advice = "; --on-error skip leaves out what can't be read" if len(cases) > 1 else ""
                raise UserError(f"{error}{advice}")
            if error:
                errors[archive.path][case.name] = error
                bar.write(f"left out: {error}", file=sys.stderr)
    outcomes = tuple(_outcome(conversion, archive, workplace, errors[archive.path]) for archive in conversion.archives)
    for outcome in outcomes:
        if not outcome.cut:
            workplace.remove()
            raise UserError(_nothing(conversion, outcome))
    return outcomes


def _cut_job(schema: Schema, options: ConvertOptions, job: _Job) -> str | None:
    """Cut a case, in a worker process. Returns an error message, or None."""
    try:
        origin = origin_of(job.case)  # before reading: a file that changes meanwhile is noticed by the next call
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


def _outcome(
    conversion: Conversion, archive: PlannedArchive, workplace: Workplace, errors: Mapping[str, str]
) -> Outcome:
    """Collect the records of an archive's cut cases. errors: name of a case -> why it could not be read."""
    records = {
        case.name: CutCase.open(workplace.path(archive.part, case)).record
        for case in archive.cases
        if case.name not in errors
    }
    return Outcome(archive, conversion.schema, records, errors)


def _nothing(conversion: Conversion, outcome: Outcome) -> str:
    """The message for an archive that would get no slice."""
    archive, options, source = outcome.archive, conversion.options, conversion.found.source
    cases = len(archive.cases)
    nobody = (
        f"none of the {cases} cases for {archive.name}" if cases > 1 else f"not even the only case for {archive.name}"
    )
    if outcome.errors and not outcome.records:
        advice = "; --split-seed or --split-file chooses others" if archive.part else ""
        return f"{source}: {nobody} can be read{advice}: {next(iter(outcome.errors.values()))}"
    wanted = f"a lesion of {options.min_tumor_pixels} or more pixels" if archive.choice == "tumor" else "a brain"
    option = "--test-slices" if archive.part == TEST else "--slices"
    view, wider = (f" and --fov {options.fov:g}", "a larger --fov, ") if OUT_OF_VIEW in outcome.lost else ("", "")
    return (
        f"{source}: {nobody} has a slice with {wanted} "
        f"at --resolution {options.resolution}{view}: choose {option} all, {wider}or other patients"
    )


# --- write ------------------------------------------------------------------------------------------------------------


def write(conversion: Conversion, outcomes: Sequence[Outcome], workplace: Workplace, force: bool) -> None:
    """Assemble the archives from the cut cases. They appear when all are complete, together with the split."""
    with Staged(conversion.paths[0], force) as staged:
        for outcome in outcomes:
            _write_archive(conversion, outcome, workplace, staged.place(outcome.archive.path))
        if conversion.split is not None:
            staged.write(conversion.dest / SPLIT_FILE, files.json_bytes(conversion.split))


def _write_archive(conversion: Conversion, outcome: Outcome, workplace: Workplace, place: Path) -> None:
    """Copy the packed slices of the cut cases into one archive at `place`."""
    archive, options = outcome.archive, conversion.options
    label_names = GRADES if options.class_by == "grade" else None
    # Patients that generators saw, from exported fakes among the cases.
    seen = {patient for name in outcome.records for patient in archive.known[name].seen or ()}
    made = _describe_making(conversion, outcome)
    most = conversion.schema.num_channels * options.resolution**2 + 1024  # bytes of a slice, unpacked
    with ArchiveWriter(place, conversion.schema, options.resolution, made, label_names, seen) as writer:
        for case, record in outcome.cut:
            assert record.volume is not None
            writer.volumes[case.name] = record.volume
            # A single archive of cases exported from a split keeps their parts.
            part = archive.part or archive.known[case.name].part
            label = None if label_names is None or case.grade is None else label_names.index(case.grade)
            members = CutCase.open(workplace.path(archive.part, case)).members(most)
            for member, index in zip(members, record.indices, strict=True):
                writer.add_packed(member, patient=case.patient, part=part, volume=case.name, index=index, label=label)


def _describe_making(conversion: Conversion, outcome: Outcome) -> dict[str, Any]:
    """The history of an archive, see ArchiveInfo.made."""
    release, found, split = conversion.found.release, conversion.found, conversion.split
    options = conversion.settled_options | {
        "source": found.source.absolute().name,
        "release": release.name,
        "cases": found.table,
    }
    if release.name == OWN:  # for a known release, its name says all this
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
        CONVERT,
        {name: value for name, value in options.items() if value is not None},
        split=None if split is None else {"part": outcome.archive.part, **config.to_json(split)},
        skipped=skipped,
        remarks=outcome.remarks,
        **({"voxels": dict(outcome.counted)} if outcome.counted else {}),
        **({"lost": outcome.lost} if outcome.lost else {}),
    )

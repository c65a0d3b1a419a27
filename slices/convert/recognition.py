"""Folder → cases: which release it is, what was found, and what belongs to no case."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dnnlib.errors import UserError
from dnnlib.text import count
from slices.convert.advice import explain
from slices.convert.cases import Case, Files, apply_table, cases_of, files_below, require_plain_names
from slices.convert.path_patterns import Pattern
from slices.convert.releases import OWN, RELEASES, Release, describe_as_own, other_challenge, release_of_name

# Names that end like visits: in a word for it, in a date, or in the number that BraTS's challenges have since 2023.
_VISIT = re.compile(
    r"(?P<who>BraTS-.+)-\d{3}|(?P<when>.+)[-_. ]\d{4}([-_.]?\d\d){2}|(?P<whose>.+?)[-_. ]?(?<=[-_. \d])"
    r"(ses|session|visit|v|tp|timepoint|scan|day|week|month|year|fu|followup|baseline|pre|post)[-_. ]?\d*",
    re.IGNORECASE,
)
_LAST_WORD = re.compile(r"(?P<stem>.+)[-_. ](?P<ending>[^-_. ]+)")


class Recognized(NamedTuple):
    """A release and its cases, found in a folder."""

    source: Path
    release: Release
    cases: list[Case]  # in order of patient and name
    words: str  # what was found, for the user
    passed_over: Mapping[str, int]  # reason -> files that belong to no case
    table: str | None  # file name of the table that says whose the cases are


def find_cases(
    source: Path, release: Release | None = None, head: Pattern | None = None, table: Path | None = None
) -> Recognized:
    """Find the cases of a folder. Without a release, recognize one of RELEASES by file names.

    head: paths of head masks. table: says whose the cases are. Raises UserError if there is no case, if two have the
    same name, or if several releases are possible.
    """
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source}: {'a file; expected a folder of cases' if source.exists() else 'no such folder'}")
    depth = max(row.images.depth for row in (RELEASES if release is None else [release]))
    files = files_below(source, depth)
    how, others = "", list[Case]()
    if release is None:
        release, how = _recognize(source, files), ", recognized by file names"
        wanted = _with_head(release, head)
    else:
        wanted = _with_head(release.any_case, head)  # the user knows the release: cases may have any names
    cases, belonging = cases_of(source, files.read, wanted)
    if not how:
        cases, others = _without_others(source, cases, release)
    if not cases:
        raise UserError(explain(source, files, release))
    if table is not None:
        cases = apply_table(cases, table)
        how += f", told by {table.name}"
    require_plain_names(source, cases)
    if release.name == "msd":
        _check_decathlon(source)
    left = Files(_strangers(files.read, belonging, wanted, cases), files.unread)
    counts = {
        "of other releases": sum(len(case.paths) for case in others),
        "fit no pattern": len(left.read),
        "not .nii.gz or .nii": len(left.unread),
    }
    words = _describe_found(source, release, how, cases, others, left)
    return Recognized(
        source=source,
        release=release,
        cases=cases,
        words=words,
        passed_over={why: n for why, n in counts.items() if n},
        table=None if table is None else table.name,
    )


def _with_head(release: Release, head: Pattern | None) -> Release:
    """The release with head masks. Raises UserError for placeholders that the pattern of images doesn't have."""
    if head is None:
        return release
    known = {*release.images.names, "case"} - {"contrast"}
    if unknown := sorted(head.names - known):
        raise UserError(f"--head {head.text}: {{{unknown[0]}}} is not known from {release.pattern}")
    return replace(release, head_masks=head)


def _without_others(source: Path, cases: list[Case], release: Release) -> tuple[list[Case], list[Case]]:
    """Separate the cases of this release from those with names of another release.

    Raises UserError if there are only the latter.
    """
    own = {case.name for case in cases if _bears(case, release)}
    others = [case for case in cases if case.name not in own and _whose(case, release)]
    if release.name == OWN or not others:
        return cases, []
    if not own:
        whose, remedy = _whose(others[0], release) or ("", "")
        raise UserError(
            f"{source}: {others[0].name} is a name of {whose}, not of {release.title}, so its label values may mean "
            f"something else: {remedy}"
        )
    names = {case.name for case in others}
    return [case for case in cases if case.name not in names], others


def _bears(case: Case, release: Release) -> bool:
    """Whether a case is named like those of a release. A visit may follow the name."""
    known = release.known.get("case") or release.known.get("patient")
    return known is not None and re.match(rf"(?:{known})(?!\d)", case.patient) is not None


def _whose(case: Case, release: Release) -> tuple[str, str] | None:
    """(release or challenge that names cases like this one, advice); None if the name is unknown elsewhere."""
    if challenge := other_challenge(case.patient):
        return challenge, f"describe the data: {describe_as_own(release)}"
    if rows := [row for row in RELEASES if row.known != release.known and _bears(case, row)]:
        remedy = f"choose --release {' or '.join(row.name for row in rows)}, or describe the data with --labels"
        return " and ".join(row.title for row in rows), remedy
    return None


def _strangers(files: Sequence[str], belonging: set[str], release: Release, cases: Sequence[Case]) -> list[str]:
    """NIfTI files that fit no pattern, the most telling examples first.

    These are files that don't mention a known case, one from each folder. Files in BIDS folders named `derivatives`
    don't count, unless a pattern names such a folder.
    """
    head = release.head_masks.text if release.head_masks is not None else ""
    asked_for = "derivatives" in f"{release.pattern} {release.mask_pattern} {head}"
    known = {case.name for case in cases} | {case.patient for case in cases}
    lengths = {len(name) for name in known}

    def mentions_a_case(file: str) -> bool:
        # All parts of the path that are as long as a known name: faster than a search for each of many names.
        return any(file[i : i + n] in known for n in lengths for i in range(len(file) - n + 1))

    found = [file for file in files if file not in belonging and (asked_for or "derivatives" not in _folders(file))]
    order, folders = {}, set()  # file -> its sort key; False comes before True
    for file in found:
        folder = file.rpartition("/")[0]
        order[file] = (mentions_a_case(file), folder in folders)
        folders.add(folder)
    return sorted(found, key=lambda file: order[file])


def _folders(file: str) -> list[str]:
    return file.split("/")[:-1]


def _like_visits(cases: Sequence[Case]) -> tuple[str, str] | None:
    """Two cases that look like visits of one patient, although each counts as a patient of its own; else None."""
    # Stem of a name -> cases: by words and dates that tell visits, and by the last word of the name.
    told, ended, endings = defaultdict(list), defaultdict(list), set()
    for name in (case.name for case in cases if case.patient == case.name):
        if match := _VISIT.fullmatch(name):
            told[match["who"] or match["when"] or match["whose"]].append(name)
        if match := _LAST_WORD.fullmatch(name):
            ended[match["stem"]].append(name)
            endings.add(match["ending"])
    # Numbered patients have as many endings as there are patients. Visits have few endings, and these repeat.
    for found in (told, ended if 2 * len(endings) <= len(ended) else {}):
        pairs = [names for names in found.values() if len(names) > 1]
        if pairs and len(found) > 1:  # a single stem means numbered patients
            return pairs[0][0], pairs[0][1]
    return None


def _describe_found(
    source: Path, release: Release, how: str, cases: list[Case], others: list[Case], left: Files
) -> str:
    """Describe what was found, what was left out, and cases that look like visits."""
    first, patients = cases[0], len({case.patient for case in cases})
    shown = [path.relative_to(source).as_posix() for path in first.paths]
    examples = shown[0] + (f" … {shown[-1]}" if len(shown) > 1 else "")
    visits = "" if first.patient == first.name else f", {first.name} of {first.patient}"
    notes = f"; left out: {count(len(others), 'case')} of other releases, such as {others[0].name}" if others else ""
    if left.read:
        notes += f"; {count(len(left.read), 'NIfTI file')} fit{'s' * (len(left.read) == 1)} no pattern"
        notes += f", such as {', '.join(left.read[:3])}"
    if left.unread:
        notes += f"; not read, as only .nii.gz and .nii are: {count(len(left.unread), 'file')}"
        notes += f", such as {', '.join(left.unread[:3])}"
    if pair := _like_visits(cases):
        notes += (
            f"; {pair[0]} and {pair[1]} look like visits of one patient, but count as two: see {{visit}} and --cases"
        )
    cases_of_patients = f"{count(len(cases), 'case')} of {count(patients, 'patient')}"
    return f"{release.title}{how}: {cases_of_patients}, such as {examples}{visits}{notes}"


# ---- Which release? ------------------------------------------------------------------------------------------------


def _recognize(source: Path, files: Files) -> Release:
    """The one release whose names the files have. Raises UserError if there is none, or more than one."""
    found = {release.name: cases_of(source, files.read, release)[0] for release in RELEASES}
    found = {name: cases for name, cases in found.items() if cases}
    if not found:
        raise UserError(explain(source, files, None))
    if len(found) > 1:
        listed = "; ".join(
            f"--release {name} for {release_of_name(name).title} ({count(len(cases), 'case')} such as {cases[0].name})"
            for name, cases in found.items()
        )
        # Do all releases give the same names of cases?
        same = len({tuple(case.name for case in cases) for cases in found.values()}) == 1
        why = "file names don't tell these releases apart" if same else "holds cases of several releases"
        raise UserError(f"{source}: {why}: choose {listed}{_hint(found) if same else ''}")
    return release_of_name(*found)


def _hint(found: Mapping[str, list[Case]]) -> str:
    """How to tell releases apart that name files alike."""
    grids = ", ".join(f"{'×'.join(map(str, release_of_name(n).grid or ()))} in {n}" for n in found)
    return f". Volumes have {grids}, and their label values mean different things"


def _check_decathlon(source: Path) -> None:
    """Raise UserError if the dataset.json of the Decathlon lists other channels than RELEASES. It may be missing."""
    path = source / "dataset.json"
    if not path.is_file():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "modality" not in content:  # of another program; nothing to compare
            return
        modality = [content["modality"][str(i)] for i in range(len(content["modality"]))]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not the description of Task01_BrainTumour ({error!r})") from None
    expected = list(release_of_name("msd").names.values())
    if modality != expected:
        raise UserError(
            f"{path}: the channels are {modality}, those of Task01_BrainTumour are {expected}: describe this data with "
            "--contrasts, --labels, --pattern and --mask-pattern"
        )

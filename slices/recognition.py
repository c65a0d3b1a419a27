"""From a folder to its cases: which release it is, what was found, and what was not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dnnlib.errors import UserError
from dnnlib.text import count
from slices.cases import Case, Files, cases_of, files_below
from slices.patterns import Pattern
from slices.releases import MASK, RELEASE_NAMES, RELEASES, Release, release_of_name


class Recognised(NamedTuple):
    """A release, its cases ordered by patient, in words what was found and from what, and the files of no case."""

    release: Release
    cases: list[Case]
    words: str
    strangers: tuple[str, ...] = ()


def find_cases(source: Path, release: Release | None = None, head: str | None = None) -> Recognised:
    """The cases of a folder; release None recognises one of RELEASES by the names of files.

    head: pattern of masks of the head. Raises UserError if there is no case, if two have one name, or if several
    releases are possible.
    """
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source}: {'a file; expected a folder of cases' if source.exists() else 'no such folder'}")
    depth = max(row.parsed().depth for row in (RELEASES if release is None else [release]))
    files = files_below(source, depth)
    how, others = "", []
    if release is None:
        release, how = _recognise(source, files.read), ", recognised by file names"
        wanted = _with_head(release, head)
    else:
        wanted = _with_head(release.any_case, head)
    cases, belonging = cases_of(source, files.read, wanted)
    if not how:
        cases, others = _without_others(cases, release)
    if not cases:
        raise UserError(_nothing_found(source, release))
    if release.name == "msd":
        _check_decathlon(source)
    strangers = _strangers(files.read, belonging, wanted, cases)
    words = _describe_found(source, release, how, cases, others, Files(strangers, files.unread))
    return Recognised(release, cases, words, tuple(strangers))


def _with_head(release: Release, head: str | None) -> Release:
    """The release with a pattern of head masks. Raises UserError for placeholders that its images don't tell."""
    if head is None:
        return release
    known = {*release.parsed().names, "case"} - {"contrast"}
    if unknown := sorted(Pattern.parse(head, "--head").names - known):
        raise UserError(f"--head {head}: {{{unknown[0]}}} is not known from {release.pattern}")
    return replace(release, head_pattern=head)


def _without_others(cases: list[Case], release: Release) -> tuple[list[Case], list[Case]]:
    """Cases, and those that bear another release's names beside some that bear this one's."""

    def bears(case: Case, names: Release) -> bool:
        known = names.known.get("case") or names.known.get("patient")
        return known is not None and re.fullmatch(known, case.patient) is not None

    if not any(bears(case, release) for case in cases):
        return cases, []
    rows = [r for r in RELEASES if r.known != release.known]
    others = [c for c in cases if not bears(c, release) and any(bears(c, other) for other in rows)]
    return [case for case in cases if case not in others], others


def _strangers(files: Sequence[str], belonging: set[str], release: Release, cases: Sequence[Case]) -> list[str]:
    """NIfTI files that fit no pattern: first those that don't look like further files of a case, one from each folder.

    What others derived from the images (`derivatives` of BIDS) does not count, unless patterns lie there.
    """
    patterns = f"{release.pattern} {release.mask_pattern} {release.head_pattern}"
    derived = "derivatives" if "derivatives" not in patterns else "\0"
    known = {case.name for case in cases} | {case.patient for case in cases}
    found = [file for file in files if file not in belonging and derived not in file.split("/")[:-1]]
    folders = set()
    order = {}
    for file in found:
        folder = file.rpartition("/")[0]
        order[file] = (any(name in file for name in known), folder in folders)
        folders.add(folder)
    return sorted(found, key=order.get)


def _describe_found(
    source: Path, release: Release, how: str, cases: list[Case], others: list[Case], left: Files
) -> str:
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
    cases_of_patients = f"{count(len(cases), 'case')} of {count(patients, 'patient')}"
    return f"{release.title}{how}: {cases_of_patients}, such as {examples}{visits}{notes}"


# ---- Which release? ------------------------------------------------------------------------------------------------


def _recognise(source: Path, files: Sequence[str]) -> Release:
    """The one release whose names the files bear."""
    found = {release.name: cases_of(source, files, release)[0] for release in RELEASES}
    found = {name: cases for name, cases in found.items() if cases}
    if not found:
        raise UserError(_not_recognised(source, files))
    if len(found) > 1:
        listed = "; ".join(
            f"--release {name} for {release_of_name(name).title} ({len(cases)} cases such as {cases[0].name})"
            for name, cases in found.items()
        )
        same = len({tuple(case.name for case in cases) for cases in found.values()}) == 1
        why = "file names don't tell these releases apart" if same else "holds cases of several releases"
        raise UserError(f"{source}: {why}: choose {listed}{_hint(found) if same else ''}")
    return release_of_name(*found)


def _hint(found: Mapping[str, list[Case]]) -> str:
    grids = ", ".join(f"{'×'.join(map(str, release_of_name(n).grid))} in {n}" for n in found)
    return f". Volumes have {grids}, and their label values mean different things"


def _not_recognised(source: Path, files: Sequence[str]) -> str:
    """What to say of a folder that bears the names of no release: its cases have the common layout, or none."""
    choices = "--release 2018 (1 necrosis / non-enhancing, 2 oedema, 4 enhancing) or another of --release"
    like_brats, _ = cases_of(source, files, release_of_name("2018").any_case)
    like_brats = [case for case in like_brats if case.mask.is_file()]
    if like_brats:
        return (
            f"{source}: {like_brats[0].name} and the other cases are laid out like BraTS but bear the names of no "
            f"release, so what their label values mean is unknown: choose {choices}, or describe the data with "
            "--contrasts, --labels and --pattern"
        )
    return (
        f"{source}: no cases found of any release: {', '.join(RELEASE_NAMES)}; "
        "describe other data with --contrasts, --labels and --pattern" + _deeper(source, files)
    )


def _nothing_found(source: Path, release: Release) -> str:
    masks = [release.mask_pattern] if release.mask_pattern and release.schema.num_maps else []
    names = [*release.names.values(), *([MASK] if release.schema.num_maps and not masks else [])]
    contrasts = "" if release.in_one_file else f" with {{contrast}} one of {', '.join(names)}"
    where = " or ".join(release.parsed().forms) + contrasts + "".join(f", and {mask}" for mask in masks)
    return f"{source}: no cases found of {release.title}; expected in it {where}"


def _deeper(source: Path, files: Sequence[str]) -> str:
    """Advice where a folder further down is the right one."""
    for folder in dict.fromkeys(Path(file).parts[0] for file in files if "/" in file):
        below = [file.partition("/")[2] for file in files if file.startswith(folder + "/")]
        if any(cases_of(source / folder, below, release)[0] for release in RELEASES):
            return f". Its folder {folder} holds cases: give that as --source"
    return ""


def _check_decathlon(source: Path) -> None:
    """Compare the Decathlon's own description, where it is there, with what the table says of it."""
    path = source / "dataset.json"
    if not path.is_file():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "modality" not in content:  # of another program; nothing to compare
            return
        modality = [content["modality"][str(i)] for i in range(4)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not the description of Task01_BrainTumour ({error!r})") from None
    expected = list(release_of_name("msd").names.values())
    if modality != expected:
        raise UserError(
            f"{path}: the channels are {modality}, those of Task01_BrainTumour are {expected}: describe this data with "
            "--contrasts, --labels, --pattern and --mask-pattern"
        )

"""Which data sets are known, how their files are named, and which cases a folder holds.

A release is named by the user or recognised by the names of its files. Label values never tell: 4 is enhancing tumour
in BraTS 2018 and a resection cavity in BraTS 2024, and the Decathlon exchanges 1 and 2.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from dnnlib.errors import UserError
from dnnlib.text import count
from slices.schema import BRATS, LesionClass, Region, Schema, is_plain_name

GRADES = ("HGG", "LGG")
AUTO, OWN = "auto", "custom"
MASK = "seg"  # what the label map is called where a contrast has its name
_PLACEHOLDER = re.compile(r"\{(\w*)\}")
_PLACEHOLDERS = ("case", "patient", "visit", "grade", "contrast")
_LARGEST_VALUE = 2**31 - 1  # of a label: what NIfTI files hold as whole numbers
_ENDING = re.compile(r"\.nii(\.gz)?$")


class VolumeFile(NamedTuple):
    """Where a contrast or label map lies: a 3-D file, or one channel of a 4-D file."""

    path: Path
    channel: int | None = None


@dataclass(frozen=True)
class Case:
    """One examination of a patient. Its files may be missing: `missing_file` tells.

    grade: one of GRADES, where the folders say so. contrasts: in the order of the schema. mask: None without classes.
    grid: voxels that the release's volumes have, if all have the same.
    """

    name: str
    patient: str
    grade: str | None
    contrasts: tuple[VolumeFile, ...]
    mask: Path | None
    grid: tuple[int, int, int] | None = None

    @property
    def paths(self) -> list[Path]:
        """Every file once."""
        return list(dict.fromkeys([file.path for file in self.contrasts] + ([self.mask] if self.mask else [])))

    def missing_file(self) -> Path | None:
        return next((path for path in self.paths if not path.is_file()), None)

    def require_files(self) -> None:
        """Raise UserError naming the first file that is missing."""
        if (missing := self.missing_file()) is None:
            return
        names = ", ".join(path.name for path in self.paths)
        bare = (
            "; for data without masks give --contrasts and --pattern, but no --labels" if missing == self.mask else ""
        )
        raise UserError(f"{missing} is missing; the case {self.name} consists of {names}{bare}")


@dataclass(frozen=True)
class Release:
    """A data set: one row of RELEASES, or one that the user described.

    patterns: where a case's files lie, relative to the source folder; with the placeholders {case} or {patient} and
    {visit}, {grade}, and {contrast}. Without {contrast} one 4-D file holds the contrasts in the order of `names`.
    mask_pattern: where label maps lie, if not where a contrast called MASK would.
    names: for each contrast of the schema, what files call it. known: regular expressions of what placeholders stand
    for, which tell this release from others. odd_masks: case -> file name of its label map, where that is unlike all
    others. grid: voxels of its volumes, if all have the same.
    """

    name: str
    title: str
    schema: Schema
    patterns: tuple[str, ...]
    names: Mapping[str, str]
    mask_pattern: str | None = None
    known: Mapping[str, str] = field(default_factory=dict)
    odd_masks: Mapping[str, str] = field(default_factory=dict)
    grid: tuple[int, int, int] | None = None

    @property
    def any_case(self) -> Release:
        """The same for cases and patients of any name: what a user says who names the release."""
        return replace(self, known={key: value for key, value in self.known.items() if key == "visit"})

    @property
    def in_one_file(self) -> bool:
        return "{contrast}" not in self.patterns[0]

    def mask_of(self, pattern: str) -> str:
        return self.mask_pattern or pattern.replace("{contrast}", MASK)


# ---- The table -----------------------------------------------------------------------------------------------------

_GRID = (240, 240, 155)
_BY_NAME = {name: name for name in BRATS.contrasts}
_GLI = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}
_FLAT = "{case}/{case}_{contrast}.nii.gz"
_GRADED = ("{grade}/" + _FLAT, _FLAT)
_VISITS = ("{patient}-{visit}/{patient}-{visit}-{contrast}.nii.gz",)
_VISIT_NAMES = {"patient": r"BraTS-GLI-\d{5}", "visit": r"\d{3}"}


def _with_values(**values: int) -> Schema:
    """BraTS's schema for files with other label values."""
    return replace(BRATS, classes=tuple(replace(c, value=values[c.name]) for c in BRATS.classes))


POST_TREATMENT = Schema(
    contrasts=BRATS.contrasts,
    classes=(
        LesionClass("NETC", "non-enhancing tumour core", 1),
        LesionClass("SNFH", "surrounding non-enhancing FLAIR hyperintensity", 2),
        LesionClass("ET", "enhancing tumour", 3),
        LesionClass("RC", "resection cavity", 4),
    ),
    regions=(
        Region("WT", ("NETC", "SNFH", "ET")),
        Region("TC", ("NETC", "ET")),
        Region("ET", ("ET",)),
        Region("RC", ("RC",)),
    ),
)

RELEASES = (
    Release("2017", "BraTS 2017", BRATS, _GRADED, _BY_NAME, known={"case": r"Brats17_\w+"}, grid=_GRID),
    Release("2018", "BraTS 2018", BRATS, _GRADED, _BY_NAME, known={"case": r"Brats18_\w+"}, grid=_GRID),
    Release("2019", "BraTS 2019", BRATS, _GRADED, _BY_NAME, known={"case": r"BraTS19_\w+"}, grid=_GRID),
    Release("2020", "BraTS 2020", BRATS, (_FLAT,), _BY_NAME, known={"case": r"BraTS20_Training_\d{3}"}, grid=_GRID,
            odd_masks={"BraTS20_Training_355": "W39_1998.09.19_Segm.nii"}),  # fmt: skip
    Release("2021", "BraTS 2021", BRATS, (_FLAT,), _BY_NAME, known={"case": r"BraTS2021_\d{5}"}, grid=_GRID),
    Release("2023-gli", "BraTS 2023 GLI", _with_values(NCR=1, ED=2, ET=3), _VISITS, _GLI,
            known=_VISIT_NAMES, grid=_GRID),  # fmt: skip
    Release("2024-gli", "BraTS 2024 GLI (post-treatment)", POST_TREATMENT, _VISITS, _GLI,
            known=_VISIT_NAMES, grid=(182, 218, 182)),  # fmt: skip
    Release("msd", "Medical Segmentation Decathlon, Task01_BrainTumour", _with_values(NCR=2, ED=1, ET=3),
            ("imagesTr/{case}.nii.gz",), {"flair": "FLAIR", "t1": "T1w", "t1ce": "t1gd", "t2": "T2w"},
            mask_pattern="labelsTr/{case}.nii.gz", known={"case": r"BRATS_\d{3}"}, grid=_GRID),  # fmt: skip
    Release("phantom", "phantoms of dataset_tool.py", BRATS, _GRADED, _BY_NAME, known={"case": r"Phantom\d+_\d+_1"}),
)  # fmt: skip
RELEASE_NAMES = tuple(release.name for release in RELEASES)


def release_of_name(name: str) -> Release:
    return next(release for release in RELEASES if release.name == name)


# ---- A data set that the user describes ----------------------------------------------------------------------------


def describe_release(
    contrasts: str, pattern: str, labels: str | None = None, mask_pattern: str | None = None, regions: str | None = None
) -> Release:
    """A release from the words of a command line.

    contrasts: "t1,flair=FLAIR": names, each with what files call it if that differs; for a 4-D file in its order.
    labels: "lesion=1,oedema=2", or None for data without label maps. regions: "whole=lesion+oedema".
    Raises UserError for what makes no schema or pattern.
    """
    pairs = [_pair(text, "--contrasts", "t1,flair=FLAIR") for text in contrasts.split(",")]
    names = {name: in_files or name for name, in_files in pairs}
    if len(names) < len(pairs):
        raise UserError(f"--contrasts {contrasts}: a name stands there twice")
    schema = Schema(tuple(names), _classes(labels), _regions(regions))
    if mask_pattern is not None and not schema.classes:
        raise UserError("--mask-pattern is of use with --labels only, which says what the masks' values mean")
    release = Release(OWN, "your data", schema, (pattern,), names, mask_pattern)
    for text, option in ((pattern, "--pattern"), (mask_pattern, "--mask-pattern")):
        if text is not None:
            _check_pattern(text, option)
    known = {*_PLACEHOLDER.findall(pattern), "case"} - {"contrast"}
    if mask_pattern and (unknown := sorted(set(_PLACEHOLDER.findall(mask_pattern)) - known)):
        raise UserError(f"--mask-pattern {mask_pattern}: {{{unknown[0]}}} is not known from --pattern {pattern}")
    if schema.classes and release.in_one_file and mask_pattern is None:
        raise UserError(
            f"--pattern {pattern} names one file for all contrasts: say with --mask-pattern where masks are"
        )
    return release


def _pair(text: str, option: str, example: str) -> tuple[str, str | None]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not name or (equals and not value):
        raise UserError(f"{option}: expected names such as {example}, found {text!r}")
    return name, value or None


def _classes(labels: str | None) -> tuple[LesionClass, ...]:
    classes = []
    for text in labels.split(",") if labels is not None else []:
        name, value = _pair(text, "--labels", "lesion=1,oedema=2")
        if value is None or not value.isdecimal():
            raise UserError(
                f"--labels: expected a name and its whole number in the masks, such as lesion=1, not {text!r}"
            )
        if int(value) > _LARGEST_VALUE:
            raise UserError(f"--labels: {value} is no label value; expected at most {_LARGEST_VALUE}")
        classes.append(LesionClass(name, name, int(value)))
    return tuple(classes)


def _regions(regions: str | None) -> tuple[Region, ...]:
    found = []
    for text in regions.split(",") if regions is not None else []:
        name, value = _pair(text, "--regions", "whole=lesion+oedema")
        if value is None:
            raise UserError(f"--regions: expected a name and its classes, such as whole=lesion+oedema, not {text!r}")
        found.append(Region(name, tuple(part.strip() for part in value.split("+"))))
    return tuple(found)


def _check_pattern(pattern: str, option: str) -> None:
    found = _PLACEHOLDER.findall(pattern)
    if set(_PLACEHOLDER.sub("", pattern)) & set("{}"):
        raise UserError(f"{option} {pattern}: has a brace without its other one; there are {_braces(_PLACEHOLDERS)}")
    if unknown := [name for name in found if name not in _PLACEHOLDERS]:
        raise UserError(f"{option} {pattern}: {{{unknown[0]}}} is unknown; there are {_braces(_PLACEHOLDERS)}")
    if not {"case", "patient"} & set(found):
        raise UserError(f"{option} {pattern}: needs {{case}} or {{patient}}, which tells whose files they are")
    if not _ENDING.search(pattern):
        raise UserError(f"{option} {pattern}: expected a name that ends in .nii.gz or .nii")
    if pattern.startswith("/") or ".." in pattern.split("/"):
        raise UserError(f"{option} {pattern}: expected a path relative to --source, without ..")


def _braces(names: Sequence[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


# ---- Cases of a folder ---------------------------------------------------------------------------------------------


class Recognised(NamedTuple):
    """A release, its cases ordered by patient, and in words what was found, and from what."""

    release: Release
    cases: list[Case]
    words: str


def find_cases(source: Path, release: Release | None = None) -> Recognised:
    """The cases of a folder; release None recognises one of RELEASES by the names of files.

    All files that fit no pattern are ignored. Raises UserError if there is no case, if two have one name, or if several
    releases are possible.
    """
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source}: {'a file; expected a folder of cases' if source.exists() else 'no such folder'}")
    patterns = [pattern for row in (RELEASES if release is None else [release]) for pattern in row.patterns]
    files = _files(source, depth=1 + max(pattern.count("/") for pattern in patterns))
    how, strangers = "", []
    if release is None:
        release, how = _recognise(source, files), ", recognised by file names"
        cases = _cases(source, files, release)
    else:
        cases, strangers = _without_strangers(_cases(source, files, release.any_case), release)
    if not cases:
        raise UserError(_nothing_found(source, release))
    if release.name == "msd":
        _check_decathlon(source)
    return Recognised(release, cases, _describe_found(source, release, how, cases, strangers))


def _without_strangers(cases: list[Case], release: Release) -> tuple[list[Case], list[Case]]:
    """Cases, and those that bear another release's names beside some that bear this one's."""

    def bears(case: Case, names: Release) -> bool:
        known = names.known.get("case") or names.known.get("patient")
        return known is not None and re.fullmatch(known, case.patient) is not None

    if not any(bears(case, release) for case in cases):
        return cases, []
    others = [r for r in RELEASES if r.known != release.known]
    strangers = [c for c in cases if not bears(c, release) and any(bears(c, other) for other in others)]
    return [case for case in cases if case not in strangers], strangers


def _describe_found(source: Path, release: Release, how: str, cases: list[Case], strangers: list[Case]) -> str:
    first, patients = cases[0], len({case.patient for case in cases})
    shown = [path.relative_to(source).as_posix() for path in first.paths]
    examples = shown[0] + (f" … {shown[-1]}" if len(shown) > 1 else "")
    visits = "" if first.patient == first.name else f", {first.name} of {first.patient}"
    left = (
        f"; left out: {count(len(strangers), 'case')} of other releases, such as {strangers[0].name}"
        if strangers
        else ""
    )
    cases_of = f"{count(len(cases), 'case')} of {count(patients, 'patient')}"
    return f"{release.title}{how}: {cases_of}, such as {examples}{visits}{left}"


def _files(source: Path, depth: int) -> list[str]:
    """Relative paths, with /, of the NIfTI files some folders down; hidden ones (._BRATS_001.nii.gz) are no data."""

    def fail(error: OSError) -> None:
        raise error  # a folder that can't be read is no empty one

    found = []
    for folder, folders, names in os.walk(source, onerror=fail, followlinks=True):
        inside = Path(folder).relative_to(source)
        folders[:] = sorted(name for name in folders if name[0] != ".") if len(inside.parts) < depth else []
        found += [(inside / name).as_posix() for name in names if name[0] != "." and _ENDING.search(name)]
    return sorted(found)


def _expression(pattern: str, release: Release, longest: bool = False) -> re.Pattern:
    """The regular expression of a pattern: named groups for its placeholders, which match as little as possible, or as
    much."""
    meanings = {"grade": "|".join(GRADES), "contrast": "|".join(map(re.escape, (*release.names.values(), MASK)))}
    pieces, seen, end = [], set(), 0
    stem = _ENDING.sub("", pattern)
    for match in _PLACEHOLDER.finditer(stem):
        name = match[1]
        pieces.append(re.escape(stem[end : match.start()]))
        meaning = meanings.get(name) or release.known.get(name) or ("[^/]+" if longest else "[^/]+?")
        pieces.append(f"(?P={name})" if name in seen else f"(?P<{name}>{meaning})")
        seen.add(name)
        end = match.end()
    return re.compile("".join(pieces) + re.escape(stem[end:]) + r"\.nii(?:\.gz)?")


def _cases(source: Path, files: Sequence[str], release: Release) -> list[Case]:
    """Cases in order of patient and name."""
    there = set(files)
    cases: dict[str, Case] = {}
    places: dict[str, tuple] = {}
    for pattern in release.patterns:
        expression, other = _expression(pattern, release), _expression(pattern, release, longest=True)
        for file in files:
            match = expression.fullmatch(file)
            if not match:
                continue
            values, longest = match.groupdict(), other.fullmatch(file).groupdict()
            if values != longest:
                ways = " or ".join(", ".join(f"{k} {v}" for k, v in w.items()) for w in (values, longest))
                raise UserError(f"{source}: {pattern} fits {file} in two ways: {ways}; separate the parts by a folder")
            name = values.get("case") or "-".join(filter(None, (values.get("patient"), values.get("visit"))))
            values["case"] = name
            place = (pattern, values.get("grade"), values.get("patient"))
            if name in places and places[name] != place:
                first, second = (
                    _fill(p, {**values, "grade": g or "", "contrast": "…"}) for p, g, _ in (places[name], place)
                )
                raise UserError(f"{source}: {first} and {second} have one name; every case needs a name of its own")
            if name not in cases:
                places[name] = place
                cases[name] = _case(source, there, release, pattern, values)
    return sorted(cases.values(), key=lambda case: (case.patient, case.name))


def _case(source: Path, there: set[str], release: Release, pattern: str, values: dict[str, str]) -> Case:
    def path(pattern: str, **more: str) -> Path:
        """The file that is there, with or without .gz, or else the one that should be."""
        expected = _fill(pattern, {**values, **more})
        stem = _ENDING.sub("", expected)
        return source / next((stem + end for end in (".nii.gz", ".nii") if stem + end in there), expected)

    schema, name = release.schema, values["case"]
    if not is_plain_name(name):
        raise UserError(f"{source}: {name!r} can't be the name of a case")
    order = list(release.names)
    contrasts = tuple(
        VolumeFile(path(pattern, contrast=release.names[c]), order.index(c) if release.in_one_file else None)
        for c in schema.contrasts
    )
    mask = path(release.mask_of(pattern)) if schema.num_maps else None
    if mask is not None and name in release.odd_masks:
        odd = mask.parent / release.odd_masks[name]
        mask = odd if odd.relative_to(source).as_posix() in there else mask
    above = source.absolute().name if "grade" not in values else None
    grade = values.get("grade") or (above if above in GRADES else None)
    return Case(name, values.get("patient", name), grade, contrasts, mask, release.grid)


def _fill(pattern: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values[match[1]], pattern)


# ---- Which release? ------------------------------------------------------------------------------------------------


def _recognise(source: Path, files: Sequence[str]) -> Release:
    """The one release whose names the files bear."""
    found = {release.name: _cases(source, files, release) for release in RELEASES}
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
    like_brats = _cases(source, files, release_of_name("2018").any_case)
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
    where = " or ".join(release.patterns) + contrasts + "".join(f", and {mask}" for mask in masks)
    return f"{source}: no cases found of {release.title}; expected in it {where}"


def _deeper(source: Path, files: Sequence[str]) -> str:
    """Advice where a folder further down is the right one."""
    for folder in dict.fromkeys(Path(file).parts[0] for file in files if "/" in file):
        below = [file.partition("/")[2] for file in files if file.startswith(folder + "/")]
        if any(_cases(source / folder, below, release) for release in RELEASES):
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

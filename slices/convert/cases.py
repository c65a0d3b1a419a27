"""Cases of a folder: which files belong to a case, and whose they are."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from dnnlib.errors import UserError
from dnnlib.text import count, name_some
from slices.convert.path_patterns import ENDING, Pattern, Way
from slices.convert.releases import GRADES, MASK, OWN, Release
from slices.nifti_diagnosis import describe_missing
from slices.schema import LONGEST_NAME, is_plain_name

# Other image formats, and endings in capitals: never read, but counted.
_UNREAD = re.compile(r"\.(nii(\.\w+){0,2}|hdr|img(\.gz)?|mgh|mgz|nrrd|nhdr|mha|mhd|mnc|dcm)$", re.IGNORECASE)
TABLE_COLUMNS = ("case", "patient", "visit", "grade")


class VolumeFile(NamedTuple):
    """The place of a contrast: a 3-D file, or one channel of a 4-D file."""

    path: Path
    channel: int | None = None  # None: a 3-D file


@dataclass(frozen=True)
class Case:
    """The files of one examination of a patient. Files may be missing, see `missing_file`."""

    name: str
    patient: str
    grade: str | None  # one of GRADES, if folders or a table say it
    contrasts: tuple[VolumeFile, ...]  # in the order of the schema
    mask: Path | None  # None without classes
    grid: tuple[int, int, int] | None = None  # shape of the release's volumes, if all have the same
    head: Path | None = None  # a mask of the head, if --head asks for it

    @property
    def paths(self) -> list[Path]:
        """All files, each once: channels share one."""
        others = [path for path in (self.mask, self.head) if path is not None]
        return list(dict.fromkeys([file.path for file in self.contrasts] + others))

    @property
    def short_names(self) -> dict[Path, str]:
        """File -> what messages call it: its path below the folder that contains all files, mostly its name."""
        above = os.path.commonpath([path.parent for path in self.paths])
        return {path: path.relative_to(above).as_posix() for path in self.paths}

    def missing_file(self) -> Path | None:
        """The first file that is not there; None if all are."""
        return next((path for path in self.paths if not path.is_file()), None)

    def require_files(self) -> None:
        """Raise UserError if a file is missing. The message also names the others if only a few are there."""
        if (missing := self.missing_file()) is None:
            return
        if words := describe_missing(missing):
            raise UserError(f"{missing}: {words}")
        names = ", ".join(self.short_names.values())
        there = [name for path, name in self.short_names.items() if path.is_file()]
        few = f", but there is only {', '.join(there)}" if len(there) < len(self.paths) - 1 and there else ""
        bare = "; for data without masks give --contrasts and --pattern, but no --labels"
        raise UserError(
            f"{missing} is missing; the case {self.name} consists of {names}{few}{bare if missing == self.mask else ''}"
        )


# ---- Files of a folder -----------------------------------------------------------------------------------------------


class Files(NamedTuple):
    """Files below a folder, as relative paths with /."""

    read: list[str]  # NIfTI files
    unread: list[str]  # images in other formats, and what could not be opened


def files_below(source: Path, depth: int) -> Files:
    """List all files at any depth, following links, without hidden ones (._BRATS_001.nii.gz).

    depth: number of folders below `source` in which cases may lie. A folder that can't be opened raises OSError down to
    that depth, and counts as unread below it. A broken link counts as unread too, because it may have been a folder.
    """
    found = Files([], [])

    def fail(error: OSError) -> None:
        folder = Path(error.filename).relative_to(source)
        if len(folder.parts) <= depth:
            raise error
        found.unread.append(f"{folder.as_posix()}/")

    # Folder -> identities of itself and the folders above it. A link back up would lead to one of them, endlessly.
    above: dict[str, frozenset] = {}
    for folder, folders, names in os.walk(source, onerror=fail, followlinks=True):
        state = os.stat(folder)
        identity, parents = (state.st_dev, state.st_ino), above.get(os.path.dirname(folder), frozenset())
        if identity in parents:
            folders.clear()  # os.walk descends into what is left in this list
            continue
        above[folder] = parents | {identity}
        folders[:] = sorted(name for name in folders if name[0] != ".")
        inside = Path(folder).relative_to(source)
        for name in names:
            if name[0] != "." and (ENDING.search(name) or _UNREAD.search(name)):
                # Files is a tuple: index 0 is `read`, index 1 is `unread`.
                found[not ENDING.search(name)].append((inside / name).as_posix())
            elif name[0] != "." and not os.path.exists(os.path.join(folder, name)):
                found.unread.append(f"{(inside / name).as_posix()} (a link to nothing)")
    return Files(sorted(found.read), sorted(found.unread))


# ---- Files to cases --------------------------------------------------------------------------------------------------


@dataclass
class _Group:
    """The files found for a case."""

    way: Way  # how the pattern fits the first of them
    # Name of a contrast in files -> the files that bear it.
    files: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def cases_of(source: Path, files: Sequence[str], release: Release) -> tuple[list[Case], set[str]]:
    """Group files into the cases of a release. Returns the cases, by patient and name, and the files they use."""
    pattern = release.images
    groups = _grouped(source, files, release, pattern)
    finders = {
        option: _Finder(files, masks.with_meanings(pattern.meanings), groups.values())
        for option, masks in (("--mask-pattern", release.masks), ("--head", release.head_masks))
        if masks is not None
    }
    if release.in_one_file:
        # Without {contrast}, the pattern of images may fit masks as well: cases that consist of masks are dropped.
        masks = {
            file
            for group in groups.values()
            for finder in finders.values()
            for file in finder.of(group.way.values)
            if file not in group.files[""]
        }
        groups = {name: group for name, group in groups.items() if not masks.issuperset(group.files[""])}
    cases, belonging, there = [], set[str](), set(files)
    for name, group in groups.items():
        cases.append(case := _case(source, there, release, pattern, name, group, finders))
        belonging |= {path.relative_to(source).as_posix() for path in case.paths}
        # Masks that a schema without classes doesn't need still belong to the case.
        belonging |= set(group.files.get(MASK, ())) if case.mask is None else set()
    return _in_order(cases), belonging


def _grouped(source: Path, files: Sequence[str], release: Release, pattern: Pattern) -> dict[str, _Group]:
    """Name of a case -> its images, and masks that are named like contrasts.

    Raises UserError if a path can be read in several ways, or if two cases have the same name.
    """
    groups: dict[str, _Group] = {}
    for file in files:
        ways = pattern.ways(file)
        ways = [way for way in ways if way.variant == ways[0].variant]  # the first variant that fits decides
        if not ways:
            continue
        if len(ways) > 1:
            raise UserError(_several_ways(source, release.pattern, file, ways))
        ((variant, values),) = ways  # exactly one
        contrast = values.pop("contrast", "")
        name = values.get("case") or "-".join(filter(None, (values.get("patient"), values.get("visit"))))
        way = Way(variant, values | {"case": name})
        group = groups.setdefault(name, _Group(way))
        if group.way.values != way.values:  # one name, but other placeholders: two cases
            first, second = (pattern.fill(w.values | {"contrast": "…"}, w.variant) for w in (group.way, way))
            raise UserError(f"{source}: {first} and {second} have one name; every case needs a name of its own")
        group.files[contrast].append(file)
    # Without classes, masks alone make no case.
    return {name: group for name, group in groups.items() if release.schema.num_maps or set(group.files) != {MASK}}


def _several_ways(source: Path, pattern: str, file: str, ways: Sequence[Way]) -> str:
    """The message for a path that a pattern fits in several ways."""
    shown = " or ".join(", ".join(f"{name} {value}" for name, value in way.values.items()) for way in ways[:2])
    return (
        f"{source}: {pattern} fits {file} in {'two' if len(ways) == 2 else len(ways)} ways: {shown}; separate the "
        "placeholders by a folder, give one a width or an expression, such as {patient:4} or {patient:[A-Z]+}, or "
        "write {case} and say with --cases whose they are"
    )


class _Finder:
    """Finds the masks of cases by a pattern.

    A file fits a case if both have the same values of the placeholders in a variant of the pattern: the key.
    """

    def __init__(self, files: Sequence[str], pattern: Pattern, cases: Iterable[_Group]) -> None:
        self.pattern = pattern
        # Key -> files. Only keys of known cases are kept.
        self._found: dict[frozenset, list[str]] = {key: [] for case in cases for key in self._keys(case.way.values)}
        for file in files:
            for key in {_key(way.values, way.values) for way in pattern.ways(file)} & self._found.keys():
                self._found[key].append(file)

    def of(self, values: Mapping[str, str]) -> list[str]:
        """Masks of the case with these placeholder values, from the first variant of the pattern that fits any."""
        return next((files for key in self._keys(values) if (files := self._found.get(key))), [])

    def _keys(self, values: Mapping[str, str]) -> list[frozenset]:
        """The key of a case for each variant whose placeholders are all known."""
        return [_key(names, values) for names in self.pattern.names_of_variants if names <= set(values)]


def _key(names: Iterable[str], values: Mapping[str, str]) -> frozenset:
    """Placeholders with their values, without stars."""
    return frozenset((name, values[name]) for name in names if name[0] != "*")


def _case(
    source: Path,
    there: set[str],
    release: Release,
    pattern: Pattern,
    name: str,
    group: _Group,
    finders: Mapping[str, _Finder],
) -> Case:
    """Make a case of the files in a group. A file that is missing is named as it should be."""
    values = group.way.values

    def image(contrast: str) -> Path:
        expected = pattern.fill(values | {"contrast": contrast}, group.way.variant)
        return source / _the_one(source, group.files.get(contrast, []), expected, name, release.name == OWN)

    def beside(option: str) -> Path:
        finder = finders[option]
        own = release.name == OWN or option == "--head"
        return source / _the_one(source, finder.of(values), finder.pattern.fill(values), name, own)

    order = list(release.names)  # of the channels of a 4-D file
    contrasts = tuple(
        VolumeFile(
            image("" if release.in_one_file else release.names[c]), order.index(c) if release.in_one_file else None
        )
        for c in release.schema.contrasts
    )
    mask = None
    if release.schema.num_maps:
        mask = beside("--mask-pattern") if release.mask_pattern else image(MASK)
        # One mask of BraTS 2020 has a name of its own.
        if not mask.is_file() and name in release.odd_masks:
            odd = ENDING.sub("", (mask.parent / release.odd_masks[name]).relative_to(source).as_posix())
            mask = next((source / (odd + end) for end in (".nii", ".nii.gz") if odd + end in there), mask)
    # `source` itself may be the folder of a grade.
    above = source.absolute().name if "grade" not in values else None
    grade = values.get("grade") or (above if above in GRADES else None)
    head = beside("--head") if release.head_masks else None
    return Case(name, values.get("patient", name), grade, contrasts, mask, release.grid, head)


def _the_one(source: Path, files: list[str], expected: str, name: str, own: bool) -> str:
    """Choose the file for a role in a case from those that fit it; `expected`, if none does.

    own: a user wrote the pattern, so its ending chooses between x.nii and x.nii.gz. Otherwise two files are an error.
    """
    if own and len(files) > 1:
        files = [file for file in files if file.endswith(".gz") == expected.endswith(".gz")] or files
    if len(files) > 1:
        raise UserError(
            f"{source}: {files[0]} and {files[1]} may both be the same file of the case {name}, and nothing tells "
            "which one is right: move the other one away"
        )
    return files[0] if files else expected


# ---- Patients of cases -----------------------------------------------------------------------------------------------


def apply_table(cases: Sequence[Case], path: Path) -> list[Case]:
    """Set patients and grades of cases from a table. Returns the cases by patient and name.

    Raises UserError unless the table has exactly one row for every case.
    """
    rows = _read_table(path)
    names = {case.name for case in cases}
    unknown, missing = [name for name in rows if name not in names], sorted(names - set(rows))
    if unknown or missing:
        found = [
            f"{words} {count(len(some), 'case')}, {name_some(some)}"
            for words, some in (("has no row for", missing), ("the source doesn't have", unknown))
            if some
        ]
        raise UserError(f"{path}: {'; '.join(found)}; expected one row for every case of the source")
    told = []
    for case in cases:
        row = rows[case.name]
        told.append(replace(case, patient=row.get("patient", case.patient), grade=row.get("grade", case.grade)))
    visits: dict[tuple[str, str], str] = {}  # (patient, visit) -> case
    for case in told:
        if visit := rows[case.name].get("visit"):
            other = visits.setdefault((case.patient, visit), case.name)
            if other != case.name:
                raise UserError(f"{path}: {other} and {case.name} are both visit {visit} of {case.patient}")
    return _in_order(told)


def _read_table(path: Path) -> dict[str, dict[str, str]]:
    """Read a table: case -> its row, without empty cells. Raises UserError if it is no table of cases."""
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}; expected a table of cases")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel writes a byte order mark
        # The character that is most frequent in the first line.
        separator = max(",;\t", key=text.partition("\n")[0].count)
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: no table in UTF-8 ({error}); expected {', '.join(TABLE_COLUMNS)}") from None
    columns = [name.strip().lower() for name in lines[0]] if lines else []
    odd = [name for name in columns if name not in TABLE_COLUMNS]
    if "case" not in columns or len(columns) < 2 or odd or len(set(columns)) < len(columns):
        found = f"found {', '.join(map(repr, columns))}" if columns else "found nothing"
        raise UserError(f"{path}: expected the columns case and one or more of {', '.join(TABLE_COLUMNS[1:])}; {found}")
    rows: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines[1:], start=2):  # numbered as editors number them
        cells = [cell.strip() for cell in line]
        if not any(cells):
            continue
        if len(cells) != len(columns):
            raise UserError(f"{path}, line {number}: expected {len(columns)} cells, found {len(cells)}")
        row = {column: cell for column, cell in zip(columns, cells, strict=True) if cell}
        if "case" not in row or ("patient" in columns and "patient" not in row):
            raise UserError(f"{path}, line {number}: names no {'patient' if 'case' in row else 'case'}")
        if row["case"] in rows:
            raise UserError(f"{path}, line {number}: {row['case']} has a row already")
        if row.get("grade", GRADES[0]) not in GRADES:
            raise UserError(f"{path}, line {number}: {row['grade']!r} is no grade; expected {' or '.join(GRADES)}")
        rows[row["case"]] = row
    return rows


def require_plain_names(source: Path, cases: Sequence[Case]) -> None:
    """Raise UserError for names of cases or patients that archives and file names can't contain."""
    names = dict.fromkeys(name for case in cases for name in (case.name, case.patient))
    if odd := [name for name in names if not is_plain_name(name)]:
        raise UserError(
            f"{source}: {name_some([repr(name) for name in odd])} can't be the name of a case or patient: expected 1 "
            f"to {LONGEST_NAME} characters that can be printed, without / \\ and :, and no dot or space in front"
        )


def _in_order(cases: Iterable[Case]) -> list[Case]:
    return sorted(cases, key=lambda case: (case.patient, case.name))

"""Provenance of exported files: which patients no network may train on, and which a generator saw.

An export writes it beside the files, and a conversion of these files reads it there. So a way over other programs
takes no patient out of the test part, and doesn't make generated slices look like patients of their own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from dnnlib.files import read_json
from slices.archive.format import PARTS, TEST, TRAIN, ArchiveInfo
from slices.convert.cases import Case
from slices.schema import is_plain_name

SLICES_FILE, CHANNELS_FILE = "slices.json", "channels.json"


@dataclass(frozen=True)
class Provenance:
    """What exported files tell of a case."""

    part: str | None = None  # of a split: where the case was
    seen: tuple[str, ...] | None = None  # patients that its slices' generator learned from; None: nothing was generated


# --- written --------------------------------------------------------------------------------------------------------


def seen_fields(info: ArchiveInfo, generated: bool) -> dict[str, Any]:
    """What an export adds for slices that were generated, or come from an archive of such."""
    return {"seen": info.seen} if generated or (info.seen and not any(r.seed is not None for r in info.slices)) else {}


# --- read -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Description:
    """The content of a file that an export wrote, as far as it concerns provenance."""

    part: str | None
    held_out: frozenset[str]  # patients of the test part
    seen: frozenset[str] | None


def read_provenance(cases: Sequence[Case], source: Path) -> dict[str, Provenance]:
    """Name of a case -> what an export wrote beside its files, or in a folder above as far up as `source`.

    Raises UserError for generated slices if it doesn't say which patients their generator learned from.
    """
    read = functools.cache(_read)  # a folder's description serves many cases
    found = {}
    for case in cases:
        paths = dict.fromkeys(path for file in case.paths for path in _beside(file, source))
        told = [description for path in paths if (description := read(path)) is not None]
        parts = {description.part for description in told}
        if any(case.patient in description.held_out for description in told):
            parts.add(TEST)
        seen = [description.seen for description in told if description.seen is not None]
        found[case.name] = Provenance(
            part=next((part for part in (TEST, TRAIN) if part in parts), None),
            seen=tuple(sorted(frozenset().union(*seen))) if seen else None,
        )
    return found


def _beside(file: Path, source: Path) -> Iterator[Path]:
    """Where an export's description of a file may lie; for a link, beside the file behind it as well."""
    behind = Path(os.path.realpath(file)).parent  # Path.resolve fails on links in a circle
    for folder in (*(p for p in file.parents if p == source or source in p.parents), behind):
        yield from (folder / SLICES_FILE, folder / CHANNELS_FILE)


def _read(path: Path) -> _Description | None:
    """The content of an export's description; None if there is none, or a file of another program's."""
    if not path.is_file():
        return None
    try:
        content = read_json(path)
    except UserError:
        return None
    if not (isinstance(content, dict) and isinstance(content.get("archive"), dict) and "schema" in content):
        return None
    if content.get("seed") is not None and "seen" not in content:
        raise UserError(
            f"{path}: these slices were generated, and an export of an older version doesn't say which patients their "
            "generator learned from: export them again"
        )
    for field in ("seen", "held_out"):
        names = content.get(field, [])
        if not (isinstance(names, list) and all(isinstance(name, str) and is_plain_name(name) for name in names)):
            raise UserError(f"{path}: {field} is no list of patients")
    part = content.get("part")
    return _Description(
        part=part if part in PARTS else None,
        held_out=frozenset(content.get("held_out", ())),
        seen=frozenset(content["seen"]) if "seen" in content else None,
    )

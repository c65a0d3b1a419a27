"""Provenance of exported files: which patients no network may train on, and which a generator saw.

An export writes it beside the files, and a conversion of these files reads it. Without it, slices that pass through
other programs would lose two facts: that they belong to a test part, and that they were generated.
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
    """What an export wrote about a case."""

    part: str | None = None  # TRAIN or TEST, if the case was in a part of a split
    seen: tuple[str, ...] | None = None  # patients that the generator of its slices saw; None for real slices


# --- written --------------------------------------------------------------------------------------------------------


def seen_fields(info: ArchiveInfo, generated: bool) -> dict[str, Any]:
    """Fields that an export adds for generated slices, and for slices converted again from exported fakes."""
    # An archive that knows a generator's patients, but holds no generated slices, was converted from exported fakes.
    return {"seen": info.seen} if generated or (info.seen and not any(r.seed is not None for r in info.slices)) else {}


# --- read -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Description:
    """What a file that an export wrote says about provenance."""

    part: str | None
    held_out: frozenset[str]  # patients of the test part
    seen: frozenset[str] | None


def read_provenance(cases: Sequence[Case], source: Path) -> dict[str, Provenance]:
    """Name of a case -> what an export wrote about it, beside its files or in a folder above them up to `source`.

    Raises UserError for generated slices if nothing says which patients their generator learned from.
    """
    read = functools.cache(_read)  # one description in a folder above serves many cases
    found = {}
    for case in cases:
        # A dict drops repeated paths and keeps their order.
        paths = dict.fromkeys(path for file in case.paths for path in _beside(file, source))
        told = [description for path in paths if (description := read(path)) is not None]
        parts = {description.part for description in told}
        if any(case.patient in description.held_out for description in told):
            parts.add(TEST)
        seen = [description.seen for description in told if description.seen is not None]
        found[case.name] = Provenance(
            # If files of one case disagree, TEST wins: nothing may be trained on it.
            part=next((part for part in (TEST, TRAIN) if part in parts), None),
            seen=tuple(sorted(frozenset().union(*seen))) if seen else None,
        )
    return found


def _beside(file: Path, source: Path) -> Iterator[Path]:
    """Paths where an export may have described a file; for a link, also beside the file that it points to."""
    behind = Path(os.path.realpath(file)).parent  # not Path.resolve, which fails for links in a circle
    for folder in (*(p for p in file.parents if p == source or source in p.parents), behind):
        yield from (folder / SLICES_FILE, folder / CHANNELS_FILE)


def _read(path: Path) -> _Description | None:
    """Read a description that an export wrote; None if there is none, or if another program wrote the file."""
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

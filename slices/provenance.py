"""What exported files keep of their archive's memory: who may not be trained on, and whom a generator has seen.

An export writes it beside the files; a conversion of these files reads it there, so that a way over other programs
takes no patient out of the test part, and doesn't make generated slices look like patients of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from dnnlib.files import read_json
from slices.archive.format import TEST, TRAIN, ArchiveInfo
from slices.convert.cases import Case
from slices.schema import is_plain_name

SLICES_FILE, CHANNELS_FILE = "slices.json", "channels.json"


@dataclass(frozen=True)
class Provenance:
    """Of a case: the side of a split that it was on, and whom the generator of its slices learned from."""

    part: str | None = None
    seen: tuple[str, ...] | None = None  # None: nothing was generated


def seen_fields(info: ArchiveInfo, generated: bool) -> dict[str, Any]:
    """What an export adds for slices that were generated, or come from an archive of such."""
    return {"seen": info.seen} if generated or (info.seen and not any(r.seed is not None for r in info.slices)) else {}


def read_provenance(cases: Sequence[Case], source: Path) -> dict[str, Provenance]:
    """Name of a case -> what an export wrote beside its files, or in a folder above as far up as `source`.

    Raises UserError for generated slices of which it doesn't say whom their generator learned from.
    """
    known: dict[Path, dict | None] = {}
    found = {}
    for case in cases:
        contents = []
        for path in dict.fromkeys(p for file in case.paths for p in _beside(file, source)):
            if path not in known:
                known[path] = _read(path)
            contents += [known[path]] if known[path] else []
        parts = {content.get("part") for content in contents}
        if any(case.patient in content.get("held_out", ()) for content in contents):
            parts.add(TEST)
        seen = [set(content["seen"]) for content in contents if "seen" in content]
        found[case.name] = Provenance(
            part=next((part for part in (TEST, TRAIN) if part in parts), None),
            seen=tuple(sorted(set().union(*seen))) if seen else None,
        )
    return found


def _beside(file: Path, source: Path) -> Iterator[Path]:
    """Where an export's description of a file may lie; for a link, beside the file behind it as well."""
    behind = Path(os.path.realpath(file)).parent  # Path.resolve fails on links in a circle
    for folder in (*(p for p in file.parents if p == source or source in p.parents), behind):
        yield from (folder / SLICES_FILE, folder / CHANNELS_FILE)


def _read(path: Path) -> dict[str, Any] | None:
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
            f"{path}: these slices were generated, and an export of an older version doesn't say whom their generator "
            "learned from: export them again"
        )
    for field in ("seen", "held_out"):
        names = content.get(field, [])
        if not (isinstance(names, list) and all(isinstance(name, str) and is_plain_name(name) for name in names)):
            raise UserError(f"{path}: {field} is no list of patients")
    return content

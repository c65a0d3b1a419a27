"""What came of a conversion, in words."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from dnnlib.text import count, format_table
from slices.archive.describe import shorten
from slices.convert.conversion import Part, Tally

MOST_NOTES = 20  # many name a file


def describe_tallies(tallies: dict[str, Tally]) -> str:
    """Tables of slices and patients, and of class areas, per archive."""
    rows = [(name, len(tally.patients), tally.areas.num_slices) for name, tally in tallies.items()]
    tables = [format_table(("archive", "patients", "slices"), rows)]
    rows = [
        (
            f"{name}  {class_name}",
            areas.class_slices[class_name],
            f"{pixels / max(1, areas.class_slices[class_name]):.0f}",
            f"{100 * pixels / areas.num_pixels:.3f} %",
        )
        for name, areas in ((name, tally.areas) for name, tally in tallies.items())
        for class_name, pixels in areas.class_pixels.items()
    ]
    rows += [
        (f"{name}  none", tally.areas.num_lesion_free, "", "")
        for name, tally in tallies.items()
        if tally.schema.classes
    ]
    if rows:
        tables.append(format_table(("class", "slices with it", "mean pixels in those", "of all pixels"), rows))
    return "\n\n".join(tables)


def describe_notes(parts: Sequence[Part]) -> str:
    """What was left out and why, and what was odd; empty if there is nothing to say."""
    rows = []
    for reason in dict.fromkeys(reason for part in parts for reason in part.left_out):
        names = dict.fromkeys(name for part in parts for name in part.left_out.get(reason, []))
        rows.append((f"left out: {reason}", count(len(names), "patient"), shorten(names)))
    for part in parts:
        # Archives keep the word that they were first made with, but not every lesion is a tumor.
        noun = "tumour" if any("tumour" in c.title for c in part.tally.schema.classes) else "lesion"
        for why, n in part.skipped.items():
            rows.append((f"{part.name} left out: {why.replace('tumour', noun)}", count(n, "slice"), ""))
    notes = _kinds_of_remarks(parts)
    for remarks, names in notes[:MOST_NOTES]:
        voxels = sum(part.counted[remark] for part in parts for remark in remarks)
        lost = {case: share for part in parts for case, share in part.lost.get(remarks[0], {}).items()}
        many = count(len(names), "case") + (f", {count(voxels, 'voxel')}" if voxels else "")
        if lost:
            many += f", {100 * np.mean(list(lost.values())):.3g} % on average"
            names = [f"{name} {100 * share:.3g} %" for name, share in lost.items()]
        alike = f" (the first of {len(remarks)})" if len(remarks) > 1 else ""
        rows.append((f"note: {remarks[0]}{alike}", many, shorten(names)))
    if (more := len(notes) - MOST_NOTES) > 0:
        rows.append((f"and {count(more, 'note')} more, which `inspect` lists", "", ""))
    return format_table(("notes", "how many", "which"), rows) if rows else ""


def _kinds_of_remarks(parts: Sequence[Part]) -> list[tuple[list[str], list[str]]]:
    """Remarks that differ in names of cases and in numbers only, and the cases that they are of."""
    cases: dict[str, list[str]] = {}
    for remark, names in (pair for part in parts for pair in part.remarks.items()):
        cases.setdefault(remark, []).extend(names)
    kinds: dict[str, list[str]] = {}
    for remark, names in cases.items():
        kinds.setdefault(re.sub(r"\d[\d.]*", "0", remark.replace(names[0], "")), []).append(remark)
    return [
        (alike, list(dict.fromkeys(name for remark in alike for name in cases[remark]))) for alike in kinds.values()
    ]

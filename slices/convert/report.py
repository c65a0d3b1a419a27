"""Report of a conversion in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dnnlib.text import count, format_table
from slices.archive.describe import describe_areas, describe_pixels, first_names
from slices.convert.outcome import Outcome

MOST_NOTES = 20  # notes that are shown; there may be one for each file


def describe_outcomes(outcomes: Sequence[Outcome], resolution: int) -> str:
    """Tables of what the archives contain, what was left out and what was odd, and the paths of the archives."""
    areas = describe_areas({outcome.name: (outcome.num_patients, outcome.areas) for outcome in outcomes})
    written = (f"{one.archive.path} ({describe_pixels(one.pixels, resolution)})" for one in outcomes)
    return "\n\n".join(filter(None, [areas, describe_notes(outcomes), f"written: {', '.join(written)}"]))


def describe_notes(outcomes: Sequence[Outcome]) -> str:
    """A table of what was left out and why, and of what was odd; empty if there is nothing to report."""
    rows = [*_rows_of_left_out(outcomes), *_rows_of_skipped(outcomes)]
    notes = _notes(outcomes)
    rows += [_row_of_note(note, outcomes) for note in notes[:MOST_NOTES]]
    if (more := len(notes) - MOST_NOTES) > 0:
        rows.append((f"and {count(more, 'note')} more, which `inspect` lists", "", ""))
    return format_table(("notes", "how many", "which"), rows) if rows else ""


def _rows_of_left_out(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    """Rows for patients that were left out, one for each reason."""
    rows = []
    # Reasons and names of all archives, each once, in the order in which they come.
    for reason in dict.fromkeys(reason for outcome in outcomes for reason in outcome.left_out):
        names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.left_out.get(reason, [])))
        rows.append((f"left out: {reason}", count(len(names), "patient"), first_names(names)))
    return rows


def _rows_of_skipped(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    """Rows for slices that were not chosen, one for each archive and reason."""
    rows = []
    for outcome in outcomes:
        # Archives keep the word that they were first made with, but not every lesion is a tumor.
        noun = "tumor" if any("tumor" in c.title for c in outcome.schema.classes) else "lesion"
        for why, n in outcome.skipped.items():
            rows.append((f"{outcome.name} left out: {why.replace('tumor', noun)}", count(n, "slice"), ""))
    return rows


class _Note(NamedTuple):
    """Remarks that differ only in names and numbers, as one note."""

    remarks: list[str]
    cases: list[str]  # that the remarks are about


def _notes(outcomes: Sequence[Outcome]) -> list[_Note]:
    """Group the remarks of all archives into notes."""
    cases: dict[str, list[str]] = {}  # remark -> cases
    for outcome in outcomes:
        for remark, names in outcome.remarks.items():
            cases.setdefault(remark, []).extend(names)
    kinds: dict[str, list[str]] = {}  # remark without names and numbers -> remarks
    for remark, names in cases.items():
        # Remarks that differ only in the case's name or in numbers are of one kind.
        kinds.setdefault(re.sub(r"\d[\d.]*", "0", remark.replace(names[0], "")), []).append(remark)
    return [
        _Note(alike, list(dict.fromkeys(name for remark in alike for name in cases[remark])))
        for alike in kinds.values()
    ]


def _row_of_note(note: _Note, outcomes: Sequence[Outcome]) -> tuple[str, str, str]:
    """The row of a note: its first remark, numbers, and examples of cases."""
    first, names = note.remarks[0], note.cases
    voxels = sum(outcome.counted[remark] for outcome in outcomes for remark in note.remarks)
    many = count(len(names), "case") + (f", {count(voxels, 'voxel')}" if voxels else "")
    lost = {case: share for outcome in outcomes for case, share in outcome.lost.get(first, {}).items()}
    if lost:
        many += f", {100 * np.mean(list(lost.values())):.3g} % on average"
        names = [f"{name} {100 * share:.3g} %" for name, share in lost.items()]
    alike = f" (the first of {len(note.remarks)})" if len(note.remarks) > 1 else ""
    return f"note: {first}{alike}", many, first_names(names)

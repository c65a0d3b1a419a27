"""The page about runs: one HTML file that asks for nothing, and one picture."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnnlib.pages.html import render
from dnnlib.pages.panels import Panel
from dnnlib.text import count, tool_version
from training.report.figures import Readout, color_of, draw, sections_of
from training.report.glance import Card, card_of
from training.report.run_folder import RunFolder
from training.report.sheets import Fakes, Named, augmentation_of, data_of, make_fakes, make_named
from training.report.tables import Captioned, facts_of, measures_table, options_table, values_table

MARK = "stylegan2-mr: page about runs"  # in the files of a report, which a later one may replace
_ROOM = 9_000_000  # bytes of sheets
_RESEARCH = (
    "For research only, not for diagnosis. Synthetic data are not anonymous.",
    "Fakes can show anatomy and disease that do not exist. A GAN can reproduce slices of its training patients, and "
    "nothing here proves that it did not: treat them with the care, and under the terms, of the data they were learned "
    "from. This page also shows real slices.",
)


@dataclass(frozen=True)
class Made:
    """How a run was trained."""

    name: str
    color: str
    facts: tuple[tuple[str, str], ...]
    log: tuple[str, ...]


@dataclass(frozen=True)
class ShownChart:
    """A chart, and how to read it."""

    panel: Panel
    readout: Readout
    hint: str


@dataclass(frozen=True)
class ShownSection:
    """Charts that are read together."""

    key: str
    title: str
    words: str
    charts: tuple[ShownChart, ...]


@dataclass(frozen=True)
class Page:
    """All that the page says."""

    title: str
    lead: str
    cards: tuple[Card, ...]
    fakes: Fakes
    reals: tuple[Named, ...]
    augmented: tuple[Named, ...]
    sections: tuple[ShownSection, ...]
    values: Captioned
    measures: Captioned | None
    made: tuple[Made, ...]
    differing: Captioned | None
    options: Captioned | None


def make_page(runs: Sequence[RunFolder]) -> bytes:
    """The page as HTML."""
    page = page_of(runs)
    made = time.strftime("%Y-%m-%d %H:%M")
    return render(
        Path(__file__).parent / "templates",
        "run",
        titles_of(page),
        page=page,
        mark=MARK,
        research=_RESEARCH,
        fakes_data=_fakes_data(page.fakes),
        readouts=[dataclasses.asdict(chart.readout) for section in page.sections for chart in section.charts],
        footer=f"Made on {made} by stylegan2-mr {tool_version()}.",
    )


def page_of(runs: Sequence[RunFolder]) -> Page:
    """All that the page says of runs."""
    several = len(runs) > 1
    return Page(
        title=" · ".join(run.name for run in runs) if len(runs) <= 3 else count(len(runs), "run"),
        lead=_lead(runs),
        cards=tuple(card_of(run, place) for place, run in enumerate(runs)),
        fakes=make_fakes(runs, _ROOM),
        reals=make_named(runs, "reals.png", "Sheet of real slices", data_of),
        augmented=make_named(runs, "augmented.png", "Sheet of augmented slices", augmentation_of),
        sections=tuple(
            ShownSection(s.key, s.title, s.words, tuple(ShownChart(*draw(plot), plot.chart.hint) for plot in s.plots))
            for s in sections_of(runs)
        ),
        values=values_table(runs),
        measures=measures_table(runs),
        made=tuple(Made(run.name, color_of(place), facts_of(run), run.log) for place, run in enumerate(runs)),
        differing=options_table(runs, differing=True) if several else None,
        options=options_table(runs, differing=False),
    )


def _lead(runs: Sequence[RunFolder]) -> str:
    told = "One training, as its folder tells" if len(runs) == 1 else f"{len(runs)} trainings, as their folders tell"
    told += ". Curves have a point per tick."
    if any(run.continued for run in runs):
        told += " ▾ with a dotted line: continued here by another process."
    return told


def titles_of(page: Page) -> dict[str, str]:
    """Sections of the page in their order: key -> title."""
    titles = {"glance": "At a glance"}
    if page.fakes.runs or page.reals:
        titles["fakes"] = "Fakes over time"
    titles |= {section.key: section.title for section in page.sections}
    if page.values.table.rows:
        titles["values"] = "Last values"
    return titles | {"made": "How it was trained", "research": "For research only"}


def _fakes_data(fakes: Fakes) -> dict:
    """What the slider's script needs."""
    return {
        "steps": fakes.steps,
        "runs": [{"name": run.name, "told": run.told, "pictures": run.uris} for run in fakes.runs],
    }

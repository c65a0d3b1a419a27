"""Tables of the page: last values, measures, options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dnnlib.system import plain_text
from training.report.quantities import LAST, Quantity, charts, is_there, last_mean, points_of
from training.report.run_folder import FACTS, Measured, RunFolder, number, show_kimg, show_option

NONE = "–"
_TITLES = {"Discrim": "Discriminator", "By hand": "Set by hand"}


@dataclass(frozen=True)
class Table:
    """A table in words. The first column holds row headers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Captioned:
    """A table with its caption."""

    caption: str
    table: Table


def show_number(value: float | None) -> str:
    """A number with four digits or all before its point, and a minus sign that is one."""
    if value is None:
        return NONE
    whole = 1000 <= abs(value) < 1e8
    return (f"{value:.0f}" if whole else f"{value:.4g}").replace("-", "−")


def values_table(runs: Sequence[RunFolder]) -> Captioned:
    """Last values of all quantities: of one run with its extremes, of several beside each other."""
    quantities = [q for chart in charts() for q in chart.quantities if any(is_there(run, q) for run in runs)]
    note = f"Means are over all values of the last {LAST} ticks. Bad steps are counted over the whole run."
    if len(runs) > 1:
        rows = tuple((q.title, *(show_number(last_mean(run, q)) for run in runs)) for q in quantities)
        header = (f"mean of the last {LAST} ticks", *(run.name for run in runs))
        return Captioned("Last values", Table(header, rows, (note,)))
    (run,) = runs
    header = ("quantity", "last tick", f"mean of the last {LAST}", "smallest", "at kimg", "largest", "at kimg")
    return Captioned("Last values", Table(header, tuple(_extremes(run, q) for q in quantities), (note,)))


def _extremes(run: RunFolder, quantity: Quantity) -> tuple[str, ...]:
    points = points_of(run, quantity)
    least, most = (choose(points, key=lambda found: found[2]) for choose in (min, max))
    return (
        quantity.title,
        show_number(points[-1][2]),
        show_number(last_mean(run, quantity)),
        *(text for kimg, _, value in (least, most) for text in (show_number(value), show_kimg(kimg))),
    )


def measures_table(runs: Sequence[RunFolder]) -> Captioned | None:
    """Last and best values of measures. None: no run has any."""
    rows = [row for run in runs for name, points in run.measures.items() for row in [_measure(run, name, points)]]
    if not rows:
        return None
    header = ("measure", "run", "last", "at kimg", "smallest", "at kimg", "largest", "at kimg")
    return Captioned("Measures", Table(header, tuple(sorted(rows, key=lambda row: row[0]))))


def _measure(run: RunFolder, name: str, points: Sequence[Measured]) -> tuple[str, ...]:
    least, most = (choose(points, key=lambda point: point.value) for choose in (min, max))
    found = (text for p in (points[-1], least, most) for text in (show_number(p.value), show_kimg(p.kimg)))
    return (name, run.name, *found)


# --- how it was made --------------------------------------------------------------------------------------------------


def facts_of(run: RunFolder) -> tuple[tuple[str, str], ...]:
    """What the log says of data, networks and machine."""
    return tuple(_facts(run))


def _facts(run: RunFolder) -> Iterator[tuple[str, str]]:
    yield "Folder", plain_text(str(run.path))
    recipe = {"options.cfg": "Recipe", "options.seed": "Seed"}
    yield from ((title, show_option(run.request[key])) for key, title in recipe.items() if key in run.request)
    if (transferred := run.options.get("transfer.name")) is not None:
        kimg = number(run.options.get("transfer.kimg"))
        told = "" if kimg is None else f", trained for {show_kimg(kimg)} kimg"
        yield "Began with", f"{show_option(transferred)}{told}"
    yield from ((_TITLES.get(name, name), run.facts[name]) for name in FACTS if name in run.facts)


def options_table(runs: Sequence[RunFolder], differing: bool) -> Captioned | None:
    """Options of runs: those that differ, or all. None: there are none."""
    names = dict.fromkeys(name for run in runs for name in run.options)
    rows = []
    for name in names:
        values = [show_option(run.options[name]) if name in run.options else NONE for run in runs]
        if not differing or len(set(values)) > 1:
            rows.append((name, *values))
    if not rows:
        return None
    caption = "Options that differ" if differing else "All options"
    return Captioned(caption, Table(("option", *(run.name for run in runs)), tuple(rows)))

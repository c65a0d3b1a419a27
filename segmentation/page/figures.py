"""The figures of a report, drawn from plain numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dnnlib.pages.panels import COLORS, FAINT, INK, MARKERS, SMALL, Panel, draw_panel
from segmentation.tables import format_interval, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REAL = "#777777"  # the color of real slices
_MANY = 5000  # dots, or points of lines; more are pixels in the SVG, as they would take megabytes
_LINE = 50  # letters of small print that a panel's width takes


@dataclass(frozen=True)
class Difference:
    """A row of a forest plot: an arm minus the arm that it is compared with, for one target."""

    label: str
    place: int  # of the arm among the arms, which decides its color
    mean: float
    interval: tuple[float, float] | None  # 95 %; None with one replicate
    patients: tuple[float, ...]  # each patient's difference
    margin: float | None = None  # of non-inferiority, as a positive number


@dataclass(frozen=True)
class Distances:
    """A row of the HD95 plot: one arm, one target."""

    label: str
    place: int  # of the arm among the arms, which decides its color
    found: tuple[float, ...]  # mm, where both truth and prediction have the target
    missed: int  # examinations with the target in the truth and nothing predicted
    false_alarms: int  # examinations without it where something was predicted


@dataclass(frozen=True)
class Line:
    """A line of a plot: an arm, by its place among the arms, which decides its color."""

    label: str
    place: int
    x: tuple[float, ...]
    y: tuple[float, ...]


# --- differences ------------------------------------------------------------------------------------------------------


def forest(name: str, title: str, rows: Sequence[Difference]) -> Panel:
    """Differences to one arm: the mean with its 95 % interval, and a dot for each patient."""
    reach = _reach(rows)
    beyond = sum(abs(d) > reach for row in rows for d in row.patients)

    def draw(axis: Axes) -> None:
        axis.axvline(0, color=FAINT, linewidth=1)
        for k, row in enumerate(rows):
            _draw_difference(axis, -k, row, reach)
        note = f"; {beyond} of the patients lie beyond the axis, at its edge" if beyond else ""
        axis.set(xlim=(-1.06 * reach, 1.06 * reach), ylim=(0.62 - len(rows), 0.78), yticks=(), title=title)
        axis.set_xlabel("\n".join(textwrap.wrap(f"difference in Dice{note}", _LINE)))
        axis.spines["left"].set_visible(False)

    told = "; ".join(f"{row.label}: {format_difference(row)}" for row in rows)
    return draw_panel(name, f"{title}, differences in Dice. {told}", 0.9 + 0.62 * len(rows), draw)


def format_difference(row: Difference) -> str:
    """A difference with its interval, as in "−0.023 [−0.041 to −0.005]"."""
    return signed(row.mean) + (f" [{format_interval(row.interval)}]" if row.interval else ", no interval")


def _reach(rows: Sequence[Difference]) -> float:
    """How far the axis goes to both sides: to most patients, all intervals and margins."""
    patients = np.abs(np.concatenate([row.patients for row in rows]))
    far = [float(np.quantile(patients, 0.9)) if patients.size else 0.0]
    for row in rows:
        far += [abs(row.mean), row.margin or 0, *(abs(end) for end in row.interval or ())]
    return min(1.15 * max(*far, 0.01), 1)  # no difference in Dice is larger


def _draw_difference(axis: Axes, y: float, row: Difference, reach: float) -> None:
    """One row: words above, then the patients, then mean and interval."""
    color = COLORS[row.place % len(COLORS)]
    shown = np.clip(np.array(row.patients), -reach, reach)
    spread = 0.13 * np.array([(k * 7 % 5 - 2) / 2 for k in range(len(shown))])  # so that equal dots don't hide
    inside = np.abs(np.array(row.patients)) <= reach
    axis.plot(shown[inside], y + spread[inside], "o", color=color, markersize=4, alpha=0.6, markeredgewidth=0)
    for sign, marker in ((-1, "<"), (1, ">")):
        side = ~inside & (np.sign(shown) == sign)
        axis.plot(shown[side], y + spread[side], marker, color=color, markersize=4, markeredgewidth=0)
    if row.margin:
        axis.plot([-row.margin] * 2, [y - 0.27, y + 0.27], color=INK, linewidth=1, linestyle=(0, (2, 2)))
    if row.interval:
        axis.plot(
            np.clip(row.interval, -1.06 * reach, 1.06 * reach), [y, y], color=INK, linewidth=2, solid_capstyle="butt"
        )
    axis.plot([row.mean], [y], "D", color=INK, markersize=6, markeredgecolor="white", markeredgewidth=0.8)
    words: dict[str, Any] = {"va": "bottom", "fontsize": SMALL}
    label = textwrap.shorten(row.label, 44, placeholder="…")
    axis.text(-1.06 * reach, y + 0.3, label, ha="left", **words)
    axis.text(1.06 * reach, y + 0.3, format_difference(row), ha="right", color=FAINT, **words)


# --- distances --------------------------------------------------------------------------------------------------------


def distances(name: str, title: str, rows: Sequence[Distances]) -> Panel:
    """HD95 of every examination and replicate by arm; misses and false alarms are counted beside it."""
    many = sum(len(row.found) for row in rows) > _MANY
    furthest = max((mm for row in rows for mm in row.found), default=1.0)

    def draw(axis: Axes) -> None:
        for k, row in enumerate(rows):
            spread = 0.14 * np.array([(n * 7 % 5 - 2) / 2 for n in range(len(row.found))])
            color = COLORS[row.place % len(COLORS)]
            axis.plot(
                row.found, -k + spread, "o", rasterized=many, color=color, markersize=4, alpha=0.6, markeredgewidth=0
            )
            axis.text(0, 0.28 - k, textwrap.shorten(row.label, 40, placeholder="…"), va="bottom", fontsize=SMALL)
            ends: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": SMALL, "color": FAINT}
            axis.text(1, 0.28 - k, _lost(row), transform=axis.get_yaxis_transform(), **ends)
        axis.set_xscale("symlog", linthresh=1)
        ticks = [mm for mm in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500) if mm <= 1.3 * furthest]
        axis.set_xticks(ticks, [str(mm) for mm in ticks])
        axis.minorticks_off()
        axis.set(xlim=(-0.05, 1.3 * furthest), ylim=(0.62 - len(rows), 0.78), yticks=(), title=title)
        axis.set_xlabel("HD95 in mm, where truth and answer both have it")
        axis.spines["left"].set_visible(False)

    told = "; ".join(f"{row.label}: {len(row.found)} distances, {_lost(row)}" for row in rows)
    return draw_panel(name, f"{title}, HD95. {told}", 0.8 + 0.55 * len(rows), draw)


def _lost(row: Distances) -> str:
    words = f"{row.missed} missed"
    return words + (f", {row.false_alarms} false" if row.false_alarms else "")


# --- bars and lines ---------------------------------------------------------------------------------------------------


def bars(
    name: str, title: str, unit: str, groups: Sequence[str], series: Mapping[str, Sequence[float | None]]
) -> Panel:
    """Horizontal bars in groups; series: name -> a value for each group (None: unknown). The first series is gray."""
    step = 0.8 / len(series)
    colors = [_REAL, *(COLORS[(k + 1) % len(COLORS)] for k in range(len(series) - 1))]

    def draw(axis: Axes) -> None:
        for k, ((label, values), color) in enumerate(zip(series.items(), colors, strict=True)):
            y = np.arange(len(groups)) + (k - (len(series) - 1) / 2) * step
            axis.barh(y, [0 if v is None else v for v in values], 0.9 * step, label=label, color=color)
        axis.set_yticks(range(len(groups)), [textwrap.shorten(g, 24, placeholder="…") for g in groups])
        axis.invert_yaxis()
        axis.tick_params(axis="y", length=0)
        axis.set(title=title, xlabel=unit, xlim=(0, None))
        if len(series) > 1:
            _legend(axis, list(series), 24)

    told = "; ".join(
        f"{label}: " + ", ".join(f"{g} {v:.3g}" for g, v in zip(groups, values, strict=True) if v is not None)
        for label, values in series.items()
    )
    height = 1.0 + len(groups) * max(0.3, 0.13 * len(series) + 0.12) + 0.17 * len(series)
    return draw_panel(name, f"{title}, {unit}. {told}", height, draw)


def lines(
    name: str, title: str, x_title: str, y_title: str, drawn: Sequence[Line], ticks: Mapping[float, str]
) -> Panel:
    """Lines of arms; an arm's first line stands in the legend. ticks: value -> its name; empty: as matplotlib likes."""
    many = sum(len(line.x) for line in drawn) > _MANY
    marked = all(len(line.x) <= 5 for line in drawn)

    def draw(axis: Axes) -> None:
        told: set[str] = set()
        for line in drawn:
            color = COLORS[line.place % len(COLORS)]
            marker = MARKERS[line.place % len(MARKERS)] if marked else None
            label = None if line.label in told else line.label
            told.add(line.label)
            axis.plot(
                line.x, line.y, color=color, marker=marker, markersize=4.5, linewidth=1.3, label=label, rasterized=many
            )
        if ticks:
            axis.set_xscale("log")
            axis.minorticks_off()
            axis.set_xticks(list(ticks), list(ticks.values()))
        axis.set(title=title, xlabel=x_title, ylabel=y_title)
        axis.grid(axis="y", color=FAINT, alpha=0.2, linewidth=0.6)
        _legend(axis, list(told), 20)

    told = "; ".join(f"{line.label}: from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in drawn if line.y)
    return draw_panel(name, f"{title}, {y_title} by {x_title}. {told}", 2.6 + 0.17 * len(drawn), draw)


def _legend(axis: Axes, labels: Sequence[str], most: int) -> None:
    """A legend below the axis, in two columns if the labels are short."""
    columns = 2 if max(map(len, labels)) <= most else 1
    axis.figure.legend(loc="outside lower left", ncols=columns, fontsize=SMALL, frameon=False)

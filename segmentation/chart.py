"""Chart of a comparison: bars of Dice by region and arm, and beside them the areas of the classes."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dnnlib.files import atomic_path
from segmentation.report import about_data
from segmentation.scores import Evaluation, Target, targets_of
from slices.class_areas import ClassAreas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DICE_TITLE = "Dice on patients that no network has seen"
# Paul Tol's bright scheme, safe for color-blind readers. Arms beyond the number of colors are hatched.
_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_HATCHES = ("", "///", "...", "xxx", "\\\\\\")
_REAL, _FAKE = "#777777", _COLORS[1]
_GROUP = 0.81  # width of a group of bars; the centers of groups are 1 apart
_SMALL = 8  # font size of small print, in points
_LETTER = 0.06  # width of a letter in small print, in inches
_NAME_LETTER, _NAME_LINE = 0.085, 0.23  # width of a letter and height of a line in groups' names, in inches
_SLANT = 25  # degrees by which names are rotated if they are wider than their group
_MARGIN = 0.9  # width of an axis' numbers and title, in inches


@dataclass(frozen=True)
class _Layout:
    """Sizes of the figure, in inches."""

    height: float
    dice: float  # width of the left half
    areas: float  # width of the right half
    columns: int  # number of columns of the legend
    legend: float  # distance from the left half's axis down to the legend


def draw_chart(path: str | os.PathLike, arms: Mapping[str, Evaluation], real: ClassAreas, fake: ClassAreas) -> None:
    """Write the chart as a PNG."""
    figure = chart(arms, real, fake)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def chart(arms: Mapping[str, Evaluation], real: ClassAreas, fake: ClassAreas) -> Figure:
    """Draw Dice by region and arm on the left, and the class areas of real and fake slices on the right."""
    # Imported here, as matplotlib is slow to import. Agg draws without a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.transforms import ScaledTranslation

    labels = [textwrap.fill(f"trained on {arm}", 90) for arm in arms]
    first = next(iter(arms.values()))  # any arm, for facts about the test archive
    about = "bars: mean Dice of the networks' own output, lines: masked, dots: examinations; one training of each arm"
    notes = [line for note in (about, *about_data(first)) for line in textwrap.wrap(note, 150)]
    layout = _lay_out(labels, [target.name for target in _shown(first)], list(real.shares), len(notes))
    figure = Figure((layout.dice + layout.areas, layout.height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[layout.dice, layout.areas])
    _draw_dice(left, arms, labels, layout.dice)
    _draw_areas(right, real, fake, layout.areas)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    # The legend's place: centered below the left axis, `layout.legend` inches down.
    below = left.transAxes + ScaledTranslation(0, -layout.legend, figure.dpi_scale_trans)
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
    left.legend(**place, ncols=layout.columns, fontsize=_SMALL, frameon=False)
    figure.supxlabel("\n".join(notes), fontsize=_SMALL)
    return figure


def _lay_out(labels: Sequence[str], regions: Sequence[str], classes: Sequence[str], notes: int) -> _Layout:
    """Compute sizes that leave room for the bars, the names below them, the legend, and the lines of notes."""
    dice, areas = min(max(6.67, 0.15 * len(labels) * len(regions)), 40), 3.33
    legend = _names_height(regions, dice)
    names = max(legend, _names_height(classes, areas))
    # As few rows as possible: take the largest number of columns that fits. In the end, drop columns that stay empty.
    columns = next((n for n in range(len(labels), 1, -1) if _legend_width(labels, n) < dice - _MARGIN), 1)
    rows = math.ceil(len(labels) / columns)
    lines = rows * max(label.count("\n") + 1 for label in labels)
    height = 4 + (names - _NAME_LINE) + 0.18 * (lines - 1) + 0.14 * max(0, notes - 2)
    return _Layout(height, dice, areas, math.ceil(len(labels) / rows), legend)


def _legend_width(labels: Sequence[str], columns: int) -> float:
    """Width of a legend in inches. Matplotlib fills it column by column."""
    # 0.55 inches for color patch and gap, beside the longest line of a column.
    filled = np.array_split(np.array([max(map(len, label.split("\n"))) for label in labels]), columns)
    return sum(0.55 + _LETTER * lengths.max() for lengths in filled)


def _shown(evaluation: Evaluation) -> list[Target]:
    """Return the regions, or the classes if the schema has no regions."""
    targets = targets_of(evaluation.model.info.schema)
    return [target for target in targets if target.kind == targets[0].kind]


def _draw_dice(axis: Axes, arms: Mapping[str, Evaluation], labels: Sequence[str], inches: float) -> None:
    """Draw bars of the mean Dice, a line on each bar for the masked Dice, and a dot for each examination."""
    targets = _shown(next(iter(arms.values())))
    offsets, width = _bars(len(arms), 0.27)
    for k, (evaluation, label) in enumerate(zip(arms.values(), labels, strict=True)):
        x = np.arange(len(targets)) + offsets[k]
        summaries = [evaluation.summary(target) for target in targets]
        color, hatch = _COLORS[k % len(_COLORS)], _HATCHES[k // len(_COLORS) % len(_HATCHES)]
        edge = "white" if hatch else color  # also the color of the hatching
        means = [s.mean for s in summaries]
        axis.bar(x, means, width, label=label, color=color, alpha=0.75, hatch=hatch, edgecolor=edge, linewidth=0)
        axis.hlines([s.masked_mean for s in summaries], x - width / 4, x + width / 4, color="black", linewidth=1)
        for place, target in zip(x, targets, strict=True):
            dice = [examination.result(target).dice for examination in evaluation.examinations]
            # Side by side, so that equal dots don't hide each other.
            spread = np.linspace(-width / 3, width / 3, len(dice)) if len(dice) > 1 else np.zeros(1)
            axis.plot(place + spread, dice, ".", color="black", markersize=3, alpha=0.6, clip_on=False)
    _name_groups(axis, [target.name for target in targets], inches)
    axis.set(ylim=(0, 1.02), ylabel="Dice", title=DICE_TITLE)


def _draw_areas(axis: Axes, real: ClassAreas, fake: ClassAreas, inches: float) -> None:
    """Draw bars of each class's mean share of a slice."""
    offsets, width = _bars(2, 0.4)
    x = np.arange(len(real.shares))
    for areas, offset, label, color in zip((real, fake), offsets, ("real", "fake"), (_REAL, _FAKE), strict=True):
        axis.bar(x + offset, [100 * share for share in areas.shares.values()], width, color=color, label=label)
    _name_groups(axis, list(real.shares), inches)
    highest = 100 * max(*real.shares.values(), *fake.shares.values())
    axis.set(ylim=(0, 1.2 * highest or 1), ylabel="mean share of a slice in %", title="Class areas")
    axis.legend(fontsize=_SMALL, loc="upper right", ncols=2)


def _bars(n: int, widest: float) -> tuple[np.ndarray, float]:
    """Return the positions of a group's n bars relative to its center, and their width. Groups are 1 apart."""
    step = min(widest, _GROUP / n)
    return (np.arange(n) - (n - 1) / 2) * step, 0.93 * step


def _name_groups(axis: Axes, names: Sequence[str], inches: float) -> None:
    """Write names below groups of bars. Rotates them if they are too long for an axis of this width in inches."""
    axis.set_xticks(range(len(names)), names)
    if _names_height(names, inches) > _NAME_LINE:
        for label in axis.get_xticklabels():
            label.set(rotation=_SLANT, ha="right", rotation_mode="anchor")
    axis.set_xlim(-0.54, len(names) - 0.46)


def _names_height(names: Sequence[str], inches: float) -> float:
    """Height of the names below an axis, in inches: a line, or more if they must be rotated."""
    longest = _NAME_LETTER * max(map(len, names))
    fit = longest < (inches - _MARGIN) / len(names)
    return _NAME_LINE + (0 if fit else longest * math.sin(math.radians(_SLANT)))

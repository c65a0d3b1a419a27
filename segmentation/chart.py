"""Bars of Dice by arm and region, and beside them the areas of the classes: a comparison as a picture."""

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

DICE_TITLE = "Dice on patients whom no network has seen"
# The bright scheme of Paul Tol, which color-blind readers can tell apart. More arms than colors are hatched.
_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_HATCHES = ("", "///", "...", "xxx", "\\\\\\")
_REAL, _FAKE = "#777777", _COLORS[1]
_GROUP = 0.81  # of the distance between two groups of bars, the share that a group takes
_SMALL = 8  # points, of small print
_LETTER = 0.06  # inches, of small print
_NAME_LETTER, _NAME_LINE = 0.085, 0.23  # inches, of the groups' names
_SLANT = 25  # degrees, of names that are longer than a group is wide
_MARGIN = 0.9  # inches, of the axis' own numbers and title


@dataclass(frozen=True)
class _Layout:
    """Sizes in inches, from what is to be shown."""

    height: float
    dice: float  # width of the left half
    areas: float  # width of the right half
    columns: int  # of the legend
    legend: float  # from the left half's axis down to the legend


def draw_chart(path: str | os.PathLike, arms: Mapping[str, Evaluation], real: ClassAreas, fake: ClassAreas) -> None:
    """Write the chart as a PNG."""
    figure = chart(arms, real, fake)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def chart(arms: Mapping[str, Evaluation], real: ClassAreas, fake: ClassAreas) -> Figure:
    """On the left, Dice by region and arm; on the right, the class areas of real and fake slices."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure
    from matplotlib.transforms import ScaledTranslation

    labels = [textwrap.fill(f"trained on {arm}", 90) for arm in arms]
    first = next(iter(arms.values()))  # all are of one archive
    about = "bars: mean of the networks' own answers, lines: masked, dots: examinations; one training of each arm"
    notes = [line for note in (about, *about_data(first)) for line in textwrap.wrap(note, 150)]
    layout = _lay_out(labels, [target.name for target in _shown(first)], list(real.shares), len(notes))
    figure = Figure((layout.dice + layout.areas, layout.height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[layout.dice, layout.areas])
    _draw_dice(left, arms, labels, layout.dice)
    _draw_areas(right, real, fake, layout.areas)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    below = left.transAxes + ScaledTranslation(0, -layout.legend, figure.dpi_scale_trans)
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
    left.legend(**place, ncols=layout.columns, fontsize=_SMALL, frameon=False)
    figure.supxlabel("\n".join(notes), fontsize=_SMALL)
    return figure


def _lay_out(labels: Sequence[str], regions: Sequence[str], classes: Sequence[str], notes: int) -> _Layout:
    """The figure grows with the bars, the names below these, the rows of the legend, and the lines of notes."""
    dice, areas = min(max(6.67, 0.15 * len(labels) * len(regions)), 40), 3.33
    legend = _names_height(regions, dice)
    names = max(legend, _names_height(classes, areas))
    # As few rows as fit, and then no more columns than these need.
    columns = next((n for n in range(len(labels), 1, -1) if _legend_width(labels, n) < dice - _MARGIN), 1)
    rows = math.ceil(len(labels) / columns)
    lines = rows * max(label.count("\n") + 1 for label in labels)
    height = 4 + (names - _NAME_LINE) + 0.18 * (lines - 1) + 0.14 * max(0, notes - 2)
    return _Layout(height, dice, areas, math.ceil(len(labels) / rows), legend)


def _legend_width(labels: Sequence[str], columns: int) -> float:
    """Inches that a legend takes, which is filled column by column."""
    filled = np.array_split(np.array([max(map(len, label.split("\n"))) for label in labels]), columns)
    return sum(0.55 + _LETTER * lengths.max() for lengths in filled)


def _shown(evaluation: Evaluation) -> list[Target]:
    """The regions; for a schema without any, its classes."""
    targets = targets_of(evaluation.model.info.schema)
    return [target for target in targets if target.kind == targets[0].kind]


def _draw_dice(axis: Axes, arms: Mapping[str, Evaluation], labels: Sequence[str], inches: float) -> None:
    """Bars of the mean Dice, a line each for the masked one, and a dot for each examination."""
    targets = _shown(next(iter(arms.values())))
    offsets, width = _bars(len(arms), 0.27)
    for k, (evaluation, label) in enumerate(zip(arms.values(), labels, strict=True)):
        x = np.arange(len(targets)) + offsets[k]
        summaries = [evaluation.summary(target) for target in targets]
        color, hatch = _COLORS[k % len(_COLORS)], _HATCHES[k // len(_COLORS) % len(_HATCHES)]
        edge = "white" if hatch else color  # which hatches have, too
        means = [s.mean for s in summaries]
        axis.bar(x, means, width, label=label, color=color, alpha=0.75, hatch=hatch, edgecolor=edge, linewidth=0)
        axis.hlines([s.masked_mean for s in summaries], x - width / 4, x + width / 4, color="black", linewidth=1)
        for place, target in zip(x, targets, strict=True):
            dice = [examination.result(target).dice for examination in evaluation.examinations]
            spread = np.linspace(-width / 3, width / 3, len(dice)) if len(dice) > 1 else np.zeros(1)
            axis.plot(place + spread, dice, ".", color="black", markersize=3, alpha=0.6, clip_on=False)
    _name_groups(axis, [target.name for target in targets], inches)
    axis.set(ylim=(0, 1.02), ylabel="Dice", title=DICE_TITLE)


def _draw_areas(axis: Axes, real: ClassAreas, fake: ClassAreas, inches: float) -> None:
    """Bars of the mean share of a slice, by class."""
    offsets, width = _bars(2, 0.4)
    x = np.arange(len(real.shares))
    for areas, offset, label, color in zip((real, fake), offsets, ("real", "fake"), (_REAL, _FAKE), strict=True):
        axis.bar(x + offset, [100 * share for share in areas.shares.values()], width, color=color, label=label)
    _name_groups(axis, list(real.shares), inches)
    highest = 100 * max(*real.shares.values(), *fake.shares.values())
    axis.set(ylim=(0, 1.2 * highest or 1), ylabel="mean share of a slice in %", title="Class areas")
    axis.legend(fontsize=_SMALL, loc="upper right", ncols=2)


def _bars(n: int, widest: float) -> tuple[np.ndarray, float]:
    """Where the centers of a group's n bars lie around its middle, and how wide each is; groups are 1 apart."""
    step = min(widest, _GROUP / n)
    return (np.arange(n) - (n - 1) / 2) * step, 0.93 * step


def _name_groups(axis: Axes, names: Sequence[str], inches: float) -> None:
    """Write names below groups of bars, which are 1 apart; slanted if they are too long for an axis this wide."""
    axis.set_xticks(range(len(names)), names)
    if _names_height(names, inches) > _NAME_LINE:
        for label in axis.get_xticklabels():
            label.set(rotation=_SLANT, ha="right", rotation_mode="anchor")
    axis.set_xlim(-0.54, len(names) - 0.46)


def _names_height(names: Sequence[str], inches: float) -> float:
    """Inches from an axis down to below the names of its groups; more than a line if they have to be slanted."""
    longest = _NAME_LETTER * max(map(len, names))
    fit = longest < (inches - _MARGIN) / len(names)
    return _NAME_LINE + (0 if fit else longest * math.sin(math.radians(_SLANT)))

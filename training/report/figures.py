"""Charts of runs: the panels of the page, and the same axes for the PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dnnlib.pages.panels import COLORS, FAINT, INK, MARKERS, SMALL, Panel, draw_panel, slug
from training.report.quantities import MEASURES, SECTIONS, Chart, Line, Section, is_there, line_of, targets_of
from training.report.run_folder import RunFolder, show_kimg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_RUNS = len(COLORS) * len(MARKERS)  # beyond, two would look alike
_HEIGHT = 2.3  # inches of a panel


@dataclass(frozen=True)
class Drawn:
    """A line of a chart: whose it is, and how it looks."""

    run: str
    quantity: str  # empty if the chart has only one
    line: Line
    color: str
    marker: str | None  # where the colors are used up
    dashed: bool
    dots: bool = False  # at every point


@dataclass(frozen=True)
class Plot:
    """A chart with its lines."""

    chart: Chart
    drawn: tuple[Drawn, ...]
    marks: tuple[tuple[float, str], ...]  # kimg at which a run was continued, and its color
    targets: tuple[float, ...]
    several: bool  # runs
    end: float  # of the axis, in kimg; the same in all charts

    @property
    def alt(self) -> str:
        """What the chart shows, in words."""
        lines = "; ".join(
            ", ".join(filter(None, (one.run, one.quantity)))
            + f": from {one.line.mean[0]:.4g} at {show_kimg(one.line.kimg[0])} kimg to {one.line.mean[-1]:.4g} "
            f"at {show_kimg(one.line.kimg[-1])}"
            for one in self.drawn
        )
        unit = f" ({self.chart.unit})" if self.chart.unit else ""
        return f"{self.chart.title}{unit} by kimg. {lines}"


def color_of(place: int) -> str:
    """Color of a run, by its place among the runs."""
    return COLORS[place % len(COLORS)]


def marker_of(place: int) -> str | None:
    """Marker of a run: None for the first runs, which colors tell apart."""
    return None if place < len(COLORS) else MARKERS[place // len(COLORS)]


# --- which charts there are -------------------------------------------------------------------------------------------


def plots_of(section: Section, runs: Sequence[RunFolder]) -> list[Plot]:
    """The charts of a section for which a run has values."""
    made = (_plot(chart, runs) for chart in section.charts)
    return [plot for plot in made if plot.drawn]


def _plot(chart: Chart, runs: Sequence[RunFolder]) -> Plot:
    several = len(runs) > 1
    drawn = []
    for place, run in enumerate(runs):
        for n, quantity in enumerate(chart.quantities):
            if is_there(run, quantity):
                # Colors tell runs apart. With a single one, they tell its quantities apart.
                color = color_of(place if several else n)
                line = line_of(run, quantity)
                drawn.append(Drawn(run.name, quantity.name, line, color, marker_of(place), several and n > 0))
    targets = targets_of(runs) if chart.target else ()
    return Plot(chart, tuple(drawn), _marks(runs), targets, several, _end(runs))


def _end(runs: Sequence[RunFolder]) -> float:
    """Where the longest run is, in kimg."""
    measured = [point.kimg for run in runs for points in run.measures.values() for point in points]
    return max([*(run.kimg for run in runs), *measured]) or 1.0


def _marks(runs: Sequence[RunFolder]) -> tuple[tuple[float, str], ...]:
    several = len(runs) > 1
    return tuple(
        (kimg, color_of(place) if several else FAINT) for place, run in enumerate(runs) for kimg in run.continued
    )


def measure_plots(runs: Sequence[RunFolder]) -> list[Plot]:
    """A chart for each measure."""
    names = dict.fromkeys(name for run in runs for name in run.measures)
    plots = []
    for n, name in enumerate(names, start=1):
        drawn = []
        for place, run in enumerate(runs):
            if points := run.measures.get(name):
                kimg, values = tuple(p.kimg for p in points), tuple(p.value for p in points)
                line = Line(kimg, values, values, values)
                drawn.append(Drawn(run.name, "", line, color_of(place), marker_of(place), False, dots=True))
        chart = Chart(f"measure-{n}-{slug(name)}", name, "", "", ())
        plots.append(Plot(chart, tuple(drawn), _marks(runs), (), len(runs) > 1, _end(runs)))
    return plots


@dataclass(frozen=True)
class DrawnSection:
    """The charts of a section that a page has."""

    key: str
    title: str
    words: str
    plots: tuple[Plot, ...]


def sections_of(runs: Sequence[RunFolder]) -> list[DrawnSection]:
    """All charts for which a run has values, in the order of the page."""
    made = [DrawnSection(s.key, s.title, s.words, tuple(plots_of(s, runs))) for s in SECTIONS]
    made.insert(2, DrawnSection(*MEASURES, tuple(measure_plots(runs))))
    return [section for section in made if section.plots]


@dataclass(frozen=True)
class Readout:
    """What a page needs to tell the values at a point of a chart."""

    left: float  # edges of the axis, as shares of the picture's width
    right: float
    end: float  # kimg at the right edge; 0 is at the left one
    lines: tuple[ReadLine, ...]


@dataclass(frozen=True)
class ReadLine:
    """A line of a chart, in few digits."""

    name: str
    color: str
    kimg: tuple[float, ...]
    values: tuple[float, ...]


def draw(plot: Plot) -> tuple[Panel, Readout]:
    """Draw a chart as a panel of the page."""
    axes: list[Axes] = []

    def remembering(axis: Axes) -> None:
        axes.append(axis)
        drawer(plot)(axis)

    panel = draw_panel(f"chart-{plot.chart.key}", plot.alt, _HEIGHT, remembering, png=False)
    (axis,) = axes  # knows its place now that it is drawn
    place = axis.get_position()
    lines = tuple(
        ReadLine(
            " ".join(filter(None, (one.run if plot.several else "", one.quantity))),
            one.color,
            tuple(float(f"{kimg:.6g}") for kimg in one.line.kimg),
            tuple(float(f"{value:.4g}") for value in one.line.mean),
        )
        for one in plot.drawn
    )
    return panel, Readout(float(place.x0), float(place.x1), float(axis.get_xlim()[1]), lines)


# --- drawing ----------------------------------------------------------------------------------------------------------


def drawer(plot: Plot) -> Callable[[Axes], None]:
    """The function that draws a chart into axes."""

    def draw(axis: Axes) -> None:
        for kimg, color in plot.marks:
            axis.axvline(kimg, color=color, linewidth=0.9, linestyle=(0, (1, 2)))
            axis.plot([kimg], [1], "v", color=color, markersize=5, transform=axis.get_xaxis_transform(), clip_on=False)
        for target in plot.targets:
            axis.axhline(target, color=FAINT, linewidth=1, linestyle=(0, (5, 3)))
        for one in plot.drawn:
            _draw_line(axis, one)
        axis.set_title(plain(plot.chart.title, 48), pad=10)  # marks stand between it and the axes
        axis.set_xlabel("kimg")
        axis.set_ylabel(plot.chart.unit)
        axis.set_xlim(0, 1.01 * plot.end)
        # Room above the largest value; an axis without any other value than 0 has no top.
        low, high = plot.chart.limits
        axis.set_ylim(bottom=low, top=high)
        bottom, top = axis.get_ylim()
        largest = max(max(one.line.high) for one in plot.drawn)
        if low == 0 and largest <= 0:
            axis.set_ylim(0, 1)
        elif high is None:  # flat curves would lie on the upper edge: matplotlib's room is a share of their range
            axis.set_ylim(top=max(top, largest + 0.05 * (largest - bottom)))
        axis.grid(axis="y", color=FAINT, alpha=0.2, linewidth=0.6)
        axis.tick_params(length=3)
        if len(plot.chart.quantities) > 1:
            _draw_legend(axis, plot)

    return draw


def _draw_line(axis: Axes, one: Drawn) -> None:
    line = one.line
    alone = len(line.kimg) == 1
    marks: dict[str, Any] = {}
    if one.marker or one.dots or alone:
        every = 1 if one.dots or alone else max(1, len(line.kimg) // 6)
        marks = {"marker": one.marker or "o", "markersize": 4, "markevery": every}
    if any(low != high for low, high in zip(line.low, line.high, strict=True)):
        axis.fill_between(line.kimg, line.low, line.high, color=one.color, alpha=0.18, linewidth=0)
    style = (0, (3, 1.5)) if one.dashed else "-"
    axis.plot(line.kimg, line.mean, color=one.color, linewidth=1.4, linestyle=style, **marks)


def _draw_legend(axis: Axes, plot: Plot) -> None:
    """Names of a chart's quantities: by color for one run, by dashes for several."""
    from matplotlib.lines import Line2D

    shown = {one.quantity: one for one in reversed(plot.drawn)}
    handles = [
        Line2D(
            [],
            [],
            color=INK if plot.several else shown[quantity.name].color,
            linestyle=(0, (3, 1.5)) if shown[quantity.name].dashed else "-",
            linewidth=1.5,
            label=quantity.name,
        )
        for quantity in plot.chart.quantities
        if quantity.name in shown
    ]
    axis.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=SMALL, frameon=False,
        borderaxespad=0.2, handlelength=1.8, columnspacing=1.2,
    )  # fmt: skip


def plain(text: str, most: int) -> str:
    """A text that matplotlib draws as it stands, cut to a length. It would take what is between $ for formulas."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")

"""The picture of a report: the charts of the page, and fakes below them, as one PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dnnlib.pages.panels import FAINT, STYLE
from training.report.figures import color_of, drawer, marker_of, plain, sections_of
from training.report.glance import status_word, status_words
from training.report.page import MARK
from training.report.run_folder import RunFolder
from training.report.sheets import MOST_ROWS, evenly, row_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

_WIDTH, _DPI = 13.0, 110  # inches, pixels per inch
_COLUMNS, _PANEL = 3, 2.35  # charts beside each other; inches of one with its words
_SIDE, _LINE = 0.8, 0.26  # inches: the margin at the left, a line of words
_ROW = 1.0  # inches; the largest height of a row of fakes


def make_picture(runs: Sequence[RunFolder]) -> bytes:
    """Draw runs as a PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plots = [plot for section in sections_of(runs) for plot in section.plots]
    rows = fakes_of(runs)
    panel_rows = -(-len(plots) // _COLUMNS)
    room = _WIDTH - 2 * _SIDE
    row_height = min(_ROW, max((room * image.height / image.width for _, image in rows), default=0.0)) + 0.03
    head = 0.55 + _LINE * len(runs)
    height = head + panel_rows * _PANEL + (0.35 + row_height * len(rows) if rows else 0) + 0.2
    title = "The first fakes, " + ("from start to now; left: kimg" if len(runs) == 1 else "the newest of each run")
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A name may have signs that the font lacks. They become boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        canvas = Figure((_WIDTH, height), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(canvas)
        _write_head(canvas, runs, height)
        if plots:
            grid = canvas.add_gridspec(
                panel_rows,
                _COLUMNS,
                left=_SIDE / _WIDTH,
                right=1 - 0.35 / _WIDTH,
                top=1 - (head + 0.25) / height,
                bottom=1 - (head + panel_rows * _PANEL - 0.5) / height,
                hspace=0.6,
                wspace=0.28,
            )
            for n, plot in enumerate(plots):
                drawer(plot)(canvas.add_subplot(grid[n // _COLUMNS, n % _COLUMNS]))
        _draw_fakes(canvas, rows, title, head + panel_rows * _PANEL + 0.35, row_height, height)
        file = io.BytesIO()
        canvas.savefig(file, format="png", metadata={"Software": MARK})
    return file.getvalue()


def fakes_of(runs: Sequence[RunFolder]) -> list[tuple[str, Image.Image]]:
    """Rows of fakes with their labels: of one run over time, of several the newest of each."""
    if len(runs) == 1:
        (run,) = runs
        chosen = [(run, f"{sheet.kimg:g}", sheet.path) for sheet in evenly(run.sheets, MOST_ROWS)]
        if reals := run.picture("reals.png"):
            chosen.append((run, "real", reals))
    else:
        chosen = [(run, str(n), run.sheets[-1].path) for n, run in enumerate(runs, start=1) if run.sheets]
    rows = ((label, row_of(run, path)) for run, label, path in chosen)
    return [(label, image) for label, image in rows if image is not None]


def _write_head(canvas: Figure, runs: Sequence[RunFolder], height: float) -> None:
    """A line for each run: its color, its name, how it stands."""
    from matplotlib.lines import Line2D

    for n, run in enumerate(runs):
        y = 1 - (0.42 + _LINE * n) / height
        several = len(runs) > 1
        x = _SIDE / _WIDTH
        if several:
            look: dict[str, Any] = {"color": color_of(n), "marker": marker_of(n), "linewidth": 3}
            canvas.add_artist(Line2D([x, x + 0.025], [y, y], transform=canvas.transFigure, **look))
            x += 0.032
        number = f"{n + 1}  " if several else ""
        name = canvas.text(x, y, number + plain(run.name, 60), weight="bold", fontsize=12, va="center")
        end = name.get_window_extent().x1 / (_WIDTH * _DPI)
        canvas.text(end + 0.012, y, f"{status_word(run)} {status_words(run)}", fontsize=11, va="center", color=FAINT)


def _draw_fakes(
    canvas: Figure, rows: Sequence[tuple[str, Image.Image]], title: str, top: float, row_height: float, height: float
) -> None:
    """Draw rows of fakes, from `top` inches below the upper edge."""
    if rows:
        canvas.text(_SIDE / _WIDTH, 1 - (top - 0.15) / height, title, weight="bold")
    for n, (label, image) in enumerate(rows):
        # Rows of more contrasts are wider. Where one would not fit, it is made smaller.
        tall = min(row_height - 0.03, (_WIDTH - 2 * _SIDE) * image.height / image.width)
        middle = 1 - (top + (n + 0.5) * row_height) / height
        width = tall * image.width / image.height / _WIDTH
        axis = canvas.add_axes((_SIDE / _WIDTH, middle - tall / 2 / height, width, tall / height))
        axis.imshow(np.asarray(image), aspect="auto", interpolation="antialiased")
        axis.set_axis_off()
        canvas.text((_SIDE - 0.08) / _WIDTH, middle, label, ha="right", va="center", fontsize=9)

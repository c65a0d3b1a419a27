"""One picture of a figure: drawn by matplotlib, as files (SVG, PNG) and as SVG inside a page."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Paul Tol's bright scheme, safe for color-blind readers. What is beyond the number of colors has other markers.
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
MARKERS = ("o", "s", "^", "D", "v")
INK, FAINT = "#1c2126", "#5d6670"  # of words and axes; the page puts the reader's colors in their place
WIDTH = 4.0  # inches; about the width of a telephone, so that letters stay readable there
SMALL = 8  # font size of small print, in points
STYLE: dict[Any, Any] = {  # of matplotlib
    "svg.fonttype": "none",  # words stay words: they can be found, and take the font of the page
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titleweight": "bold",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # the same bytes on every day


@dataclass(frozen=True)
class Panel:
    """One picture of a figure."""

    name: str  # of its files, without suffix
    alt: str  # what it shows, in words
    svg: bytes
    png: bytes  # empty if it has no files

    @property
    def inline(self) -> str:
        """The picture as an element of a page, in the page's colors."""
        svg = self.svg.decode()
        svg = svg[svg.index("<svg") :]
        # Names inside one SVG would be met again in the next one of the page.
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", svg)
        svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
        # The page sets the width; the view box keeps the proportions.
        svg = re.sub(r' (width|height)="[0-9.]+pt"', "", svg, count=2)
        return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(self.alt)}"', 1)


@dataclass(frozen=True)
class Figure:
    """Panels beside each other, with a title and a caption."""

    title: str
    caption: str
    panels: tuple[Panel, ...]


def draw_panel(name: str, alt: str, height: float, draw: Callable[[Axes], None], png: bool = True) -> Panel:
    """Draw one picture of WIDTH × height inches. png: False for a panel of a page alone, which has no files."""
    # Imported here, as matplotlib is slow to import. Agg draws without a display.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        canvas = Canvas((WIDTH, height), dpi=200, layout="constrained")
        FigureCanvasAgg(canvas)
        draw(canvas.subplots())
        svg, pixels = io.BytesIO(), io.BytesIO()
        canvas.savefig(svg, format="svg", transparent=True, metadata=_NO_METADATA)
        if png:
            canvas.set_layout_engine("none")  # it has done its work, which takes as long as the drawing
            canvas.savefig(pixels, format="png", metadata={"Software": None})
    return Panel(name, alt, svg.getvalue(), pixels.getvalue())


def slug(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-") or "x"

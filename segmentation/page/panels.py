"""The look of an experiment's figures. Their panels are those of all pages."""

from dnnlib.pages.panels import COLORS, FAINT, INK, MARKERS, SMALL, Figure, Panel, draw_panel, slug

__all__ = ["COLORS", "FAINT", "INK", "MARKERS", "REAL", "SMALL", "Figure", "Panel", "draw_panel", "slug"]

REAL = "#777777"  # the color of real slices

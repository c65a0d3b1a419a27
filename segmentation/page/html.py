"""A report as one HTML file that asks for nothing: no picture, no font, no program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dnnlib.pages.html import render
from segmentation.page.report import Report
from segmentation.page.viewer import Viewer
from segmentation.page.words import ABOUT, HEADING, RESEARCH, TITLES, citation


def to_html(report: Report) -> bytes:
    """Fill the template. Everything from outside is escaped."""
    return render(
        Path(__file__).parent / "templates",
        "report",
        TITLES,
        report=report,
        heading=HEADING,
        research=RESEARCH,
        citation=citation(),
        about=ABOUT,
        viewer_data=_viewer_data,
    )


def _viewer_data(viewer: Viewer) -> dict[str, Any]:
    """What the viewer's script needs."""
    return {
        "target": viewer.target,
        "contrasts": viewer.contrasts,
        "titles": ("truth", *viewer.answers),
        "patients": [
            {
                "name": patient.name,
                "dice": patient.dice,
                "slices": [{"place": s.place, "contrasts": s.contrasts, "labels": s.labels} for s in patient.slices],
            }
            for patient in viewer.patients
        ],
    }

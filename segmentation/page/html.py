"""A report as one HTML file that asks for nothing: no picture, no font, no program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from segmentation.page.report import Report
from segmentation.page.viewer import Viewer
from segmentation.page.words import ABOUT, HEADING, RESEARCH, TITLES, citation

_TEMPLATES = Path(__file__).parent / "templates"


def to_html(report: Report) -> bytes:
    """Fill the template. Everything from outside is escaped."""
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        finalize=_unbroken,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css, js = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return (
        environment.get_template("report.html.jinja")
        .render(
            report=report,
            heading=HEADING,
            titles=TITLES,
            research=RESEARCH,
            citation=citation(),
            about=ABOUT,
            viewer_data=_viewer_data,
            css=css,
            js=js,
        )
        .encode()
    )


def _unbroken(value: Any) -> Any:
    """Keep a number and its % on one line."""
    return value.replace(" %", "\u00a0%") if type(value) is str else value


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

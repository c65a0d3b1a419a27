"""Files of a finished experiment: rows, numbers, tables, figures and the page. They appear together, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnnlib.files import json_bytes
from dnnlib.publish import Staged
from segmentation.page.figures import draw_figures
from segmentation.page.markdown import to_markdown
from segmentation.page.page import to_html
from segmentation.results import to_csv
from segmentation.study import Study

CSV, JSON, PAGE, WORDS, FIGURES = "results.csv", "results.json", "report.html", "report.md", "figures"
FORMAT, VERSION = "experiment", 1


def write_study(studies: Sequence[Study], outdir: Path) -> None:
    """Write the results of one experiment, or of several with one page. Replaces the files of an earlier call."""
    rows = to_csv(row for study in studies for row in study.rows)
    numbers = json_bytes({"format": FORMAT, "version": VERSION, "experiments": [to_content(one) for one in studies]})
    with Staged(outdir / CSV, force=True) as staged:
        staged.write(outdir / CSV, rows)
        staged.write(outdir / JSON, numbers)
        staged.write(outdir / WORDS, to_markdown(studies).encode())
        staged.write(outdir / PAGE, to_html(studies, rows, numbers).encode())
        draw_figures(studies, staged.place(outdir / FIGURES))


def to_content(study: Study) -> dict[str, Any]:
    """Content of results.json: all but the rows, which results.csv holds."""
    archives = {"real": study.real, "fakes": study.fakes, "test": study.test, "val": study.val}
    return {
        "name": study.name,
        "title": study.title,
        "arms": {arm.name: arm.title for arm in study.arms},
        "replicates": study.replicates,
        "gans": study.gans,
        "options": study.options,
        "margin": study.margin,
        "comparisons": study.comparisons,
        "convergence": study.convergence,
        "agreement": study.agreement,
        "content": study.content,
        "archives": archives,
        "notes": study.notes,
        "commands": study.commands,
        "made": study.made,
    }

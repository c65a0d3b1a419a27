"""Files of a finished experiment: rows, numbers, tables, figures and the page. They appear together, or not at all."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dnnlib import config
from dnnlib.files import json_bytes
from dnnlib.publish import Staged
from segmentation.page.page import FIGURES, make_report
from segmentation.results import to_csv
from segmentation.study import Study
from segmentation.tables import common_notes

CSV, JSON, PAGE = "results.csv", "results.json", "report.html"
FORMAT, VERSION = "experiment", 1
_FIGURE = re.compile(r"(table1|table2|arms)-[\w-]+\.(svg|png)")  # a name that one of ours may have


def write_study(studies: Sequence[Study], outdir: Path) -> None:
    """Write the results of one experiment, or of several with one page. Replaces the files of an earlier call."""
    files = {
        CSV: to_csv(row for study in studies for row in study.rows),
        JSON: json_bytes({"format": FORMAT, "version": VERSION, "experiments": [to_content(one) for one in studies]}),
    }
    files |= make_report(studies, files)
    with Staged(outdir / CSV, force=True, joins=True) as staged:
        figures = staged.place(outdir / FIGURES)
        figures.mkdir()
        for name, content in files.items():
            if name.startswith(f"{FIGURES}/"):
                (figures / Path(name).name).write_bytes(content)
            else:
                staged.write(outdir / name, content)
    _remove_old_figures(outdir / FIGURES, {Path(name).name for name in files})


def _remove_old_figures(folder: Path, new: Collection[str]) -> None:
    """Remove figures of an earlier call, such as of an arm that is no longer there. Other files stay."""
    for path in folder.iterdir():
        if path.name not in new and _FIGURE.fullmatch(path.name):
            path.unlink()


def to_content(study: Study) -> dict[str, Any]:
    """Content of results.json: all but the rows, which results.csv holds."""
    # Facts hold names of files. Their paths stand in the commands only.
    archives = {
        "real": study.real.facts,
        "fakes": [{"snapshots": fake.snapshots, **config.to_json(fake.facts)} for fake in study.fakes],
        "test": study.test.facts,
        "val": study.val and study.val.facts,
    }
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
        "notes": (*common_notes(study), *study.notes),
        "commands": study.commands,
        "made": study.made,
    }

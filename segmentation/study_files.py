"""Files of a finished experiment: rows, numbers, tables, figures and the page. They appear together, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnnlib import config
from dnnlib.files import json_bytes
from dnnlib.publish import Staged
from segmentation.page.page import stage_report
from segmentation.results import to_csv
from segmentation.study import Study
from segmentation.tables import common_notes

CSV, JSON, PAGE = "results.csv", "results.json", "report.html"
FORMAT, VERSION = "experiment", 1


def write_study(studies: Sequence[Study], outdir: Path) -> None:
    """Write the results of one experiment, or of several with one page. Replaces the files of an earlier call."""
    files = {
        CSV: to_csv(row for study in studies for row in study.rows),
        JSON: json_bytes({"format": FORMAT, "version": VERSION, "experiments": [to_content(one) for one in studies]}),
    }
    with Staged(outdir / CSV, force=True, joins=True) as staged:
        stage_report(staged, outdir, studies, files)


def to_content(study: Study) -> dict[str, Any]:
    """Content of results.json: all but the rows, which results.csv holds."""
    # Without paths, which may be private: facts hold the names of the files.
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

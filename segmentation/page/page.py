"""All files of a report, made from finished experiments."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.pages.data_uris import data_uri
from dnnlib.text import count
from segmentation.page.content import part_of
from segmentation.page.html import to_html
from segmentation.page.markdown import to_markdown
from segmentation.page.report import Download, Report
from segmentation.page.samples import make_samples
from segmentation.page.viewer import Answer, make_viewer
from segmentation.page.words import NOT_RUN
from segmentation.study import Study
from slices.archive.reader import ArchiveReader

PAGE, WORDS, FIGURES = "report.html", "report.md", "figures"
MOST_BYTES = 15_000_000  # of report.html
_SAMPLES = 2_500_000  # bytes of unselected slices
_PLAIN = 1_500_000  # bytes; larger files to download are packed
_KINDS = {".csv": "text/csv", ".json": "application/json", ".gz": "application/gzip"}


def make_report(studies: Sequence[Study], files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Make report.html, report.md and figures/*.svg and *.png: path below the output folder -> content.

    files: name -> content of results.csv and results.json, which the page offers for download. Raises UserError if
    the page is too large even without any slice.
    """
    bare = Report(
        title=" and ".join(study.title for study in studies),
        lead=_lead(studies),
        parts=tuple(part_of(study) for study in studies),
        not_run=_not_run(studies),
        viewers=(),
        samples=(),
        downloads=tuple(_download(name, content) for name, content in files.items()),
    )
    if len(to_html(bare)) > MOST_BYTES // 2:
        bare = replace(bare, downloads=())  # they lie beside the page
    report = _with_slices(bare, studies)
    page = to_html(report)
    if len(page) > MOST_BYTES:
        raise UserError(f"report.html would take {len(page):,} bytes, more than {MOST_BYTES:,}: compare fewer arms")
    made = {PAGE: page, WORDS: to_markdown(report).encode()}
    for panel in report.panels:
        made[f"{FIGURES}/{panel.name}.svg"], made[f"{FIGURES}/{panel.name}.png"] = panel.svg, panel.png
    return made


# --- its parts --------------------------------------------------------------------------------------------------------


def _lead(studies: Sequence[Study]) -> str:
    first = studies[0]
    arms = ", ".join(dict.fromkeys(arm.title for study in studies for arm in study.arms))
    return (
        f"U-Nets that learned from {arms}, tested on {count(first.test.facts.patients, 'patient')} that no network has "
        f"seen. R: real slices, F: fakes of a GAN, A: flips of real slices."
    )


def _not_run(studies: Sequence[Study]) -> tuple[str, ...]:
    run = {study.name for study in studies}
    return tuple(sentence for name, sentence in NOT_RUN.items() if name not in run)


def _download(name: str, content: bytes) -> Download:
    if len(content) > _PLAIN:
        name, content = f"{name}.gz", gzip.compress(content, mtime=0)
    words = f"{len(content) / 1000:,.0f} kB"
    return Download(name, data_uri(_KINDS[Path(name).suffix], content), words)


def _with_slices(report: Report, studies: Sequence[Study]) -> Report:
    """Add unselected slices, then as much of the viewers as there is room for."""
    samples = {study.fakes[0].facts.sha256: study for study in studies if study.fakes}  # the same fakes are shown once
    room = min(_SAMPLES, (MOST_BYTES - len(to_html(report))) // 3)
    report = replace(
        report,
        samples=tuple(
            make_samples(s.title, ArchiveReader(s.real.path), ArchiveReader(s.fakes[0].path), room // len(samples))
            for s in samples.values()
        ),
    )
    tests = {study.test.facts.sha256: study for study in studies}
    room = (MOST_BYTES - len(to_html(report))) // len(tests) - 20_000  # the rest for names and words
    viewers = (
        make_viewer(ArchiveReader(study.test.path), _answers(studies, sha256), study.headline[0].name, room)
        for sha256, study in tests.items()
    )
    return replace(report, viewers=tuple(viewer for viewer in viewers if viewer is not None))


def _answers(studies: Sequence[Study], test: str) -> list[Answer]:
    """The first U-Net of every arm that was tested on an archive."""
    tested = [study for study in studies if study.test.facts.sha256 == test]
    answers = []
    for study in tested:
        for arm in study.arms:
            target = study.headline[0]
            dice = {
                row.examination: row.dice
                for row in study.rows
                if (row.arm, row.replicate, row.kind, row.target) == (arm.name, 1, target.kind, target.name)
            }
            label = arm.title if len(tested) == 1 else f"{arm.title} ({study.title})"
            answers.append(Answer(label, study.unets[arm.name, 1].model, dice))
    return answers

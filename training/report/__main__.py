"""One page about a run, or about several: `python -m training.report runs/a runs/b`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

# `python <project>/training/report` finds the project's packages, with this folder behind all others.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
sys.path.sort(key=lambda place: Path(place).resolve() == Path(__file__).resolve().parent)

from dataclasses import dataclass

from dnnlib.cli import HELP, Checked, option, options
from dnnlib.errors import reports_user_errors
from dnnlib.system import run


@dataclass(frozen=True)
class ReportOptions(Checked):
    """Where the page goes."""

    dest: Path | None = option(
        "The page to write, such as compared.html, or a folder; the picture has its name with .png.",
        default=None,
        shown="report.html in the run folder; with several runs, in the working folder",
        metavar="HTML",
    )
    force: bool = option("Replace files that are no report.", switch=True)


@click.command(context_settings=HELP)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@options(ReportOptions, "asked")
@reports_user_errors
def main(runs: tuple[Path, ...], asked: ReportOptions) -> None:
    """Write one page about a run, and one picture: curves, fakes over time, how it stands, how it was trained.

    RUN is the folder of a run of train.py: one that is finished, that was killed, or that is running, or a copy of it.
    Several runs stand in the same charts.
    """
    # Imported when it is needed: matplotlib and jinja2 take a second.
    from training.report.report_files import write_report

    for path in write_report(runs, asked.dest, asked.force):
        click.echo(f"written: {path}")


if __name__ == "__main__":
    run(main, prog_name="python -m training.report")

"""One experiment from its archives to its page: check, train and test in jobs, collect, write."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from dnnlib.jobs import Graph, held
from dnnlib.slots import RunJobs, Slots
from segmentation.collect import collect
from segmentation.experiment import PROGRAMS, WRITTEN, Archives, Plan, experiment_jobs
from segmentation.experiment_checks import check_experiment
from segmentation.experiment_options import ExperimentOptions, plan_experiment
from segmentation.study_files import CSV, PAGE, write_study
from segmentation.tables import claims_table, describe_study, dice_table
from slices.archive.reader import ArchiveReader


def run_experiment(asked: ExperimentOptions, given: Mapping[str, Any], how: RunJobs) -> None:
    """Run an experiment, or show its plan. given: options of the trainings that the user gave."""
    slots = how.slots  # refuses a launcher that is not there
    plan = plan_experiment(asked, given, ArchiveReader(asked.real).resolution)
    archives = asked.archives
    for warning in check_experiment(plan, archives):
        click.echo(warning)
    outdir = Path(asked.outdir)
    graph = Graph(outdir, PROGRAMS, experiment_jobs(plan, archives))
    graph.refuse_strangers(WRITTEN)
    if how.dry_run:
        click.echo(graph.plan(slots))
        return
    tell_of_old_report(graph, slots)
    with held(outdir) as lock:
        graph.run(slots, lock)
        finish(graph, [(plan, archives)], outdir)


def tell_of_old_report(graph: Graph, slots: Slots) -> None:
    """Say that a report is of an earlier call, if one is there and jobs are to be run."""
    if (graph.outdir / CSV).exists() and graph.plan(slots).todo:
        click.echo(f"until all jobs are done, {graph.outdir / PAGE} and the files beside it are of an earlier call")


def check_real_slices(graph: Graph, plans: Sequence[tuple[Plan, Archives]]) -> None:
    """Check the archives of real slices, whose jobs are done, as `check_experiment` does. There are no fakes yet."""
    for plan, archives in plans:
        some = replace(plan, arms=tuple(arm for arm in plan.arms if not arm.uses_fakes))
        for warning in check_experiment(some, _with_paths(graph, replace(archives, fakes=()))):
            click.echo(warning)


def finish(graph: Graph, plans: Sequence[tuple[Plan, Archives]], outdir: Path) -> None:
    """Collect the results of experiments whose jobs are done, write them, and print their tables."""
    click.echo("\ncollecting the results")
    commands = [shown_command(), *graph.commands()]
    studies = [collect(plan, _with_paths(graph, archives), outdir, commands) for plan, archives in plans]
    write_study(studies, outdir)
    for study in studies:
        click.echo(f"\n=== {study.title}\n{describe_study(study)}")
        for table in (dice_table(study), claims_table(study)):
            click.echo("\n" + table.text())
    click.echo(f"\nwritten to {outdir}: {', '.join(WRITTEN)}. Look at {outdir / PAGE}; {CSV} has every number")


def shown_command() -> str:
    """The command line of this process, as a user would write it."""
    program = Path(sys.argv[0])
    words = ["-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join(["python", *words, *sys.argv[1:]])


def _with_paths(graph: Graph, archives: Archives) -> Archives:
    """Put paths in place of results of jobs."""
    return replace(
        archives,
        real=graph.resolve(archives.real),
        fakes=tuple(map(graph.resolve, archives.fakes)),
        test=graph.resolve(archives.test),
        val=None if archives.val is None else graph.resolve(archives.val),
    )

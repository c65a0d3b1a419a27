"""The whole experiment as a graph of jobs: convert, train GANs, generate, train and test U-Nets, compare their Dice.

python reproduce.py --preset=demo --outdir=runs/demo
python reproduce.py --preset=paper --outdir=runs/paper --source=BraTS18
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import click

from dnnlib.cli import HELP, Checked, given, option, options
from dnnlib.errors import UserError, reports_user_errors
from dnnlib.jobs import Graph, held
from dnnlib.slots import RunJobs, Slots
from dnnlib.system import run
from dnnlib.text import format_time
from reproduce_jobs import FEW, GAN_ON, PRESETS, Few, Wanted, all_jobs, slice_jobs
from segmentation.experiment import MOST_REPLICATES, PROGRAMS, WRITTEN


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Options of the command line."""

    preset: str = option(
        "demo: phantoms at 64×64 on a laptop; paper: BraTS 2018 at 256×256 on GPUs.", choices=tuple(PRESETS)
    )
    outdir: str = option("Folder for all results; a second call continues there.", metavar="DIR")
    source: str | None = option("BraTS 2018 training data, for --preset=paper.", default=None, metavar="DIR")
    replicates: int | None = option(
        "U-Nets of each arm.", default=None, least=1, most=MOST_REPLICATES, shown="2 in the demo, 5 for the paper"
    )
    gans: int | None = option(
        "GANs whose fakes the replicates learn from: one for all, or one for each.",
        default=None,
        least=1,
        shown="1 in the demo, one for each replicate for the paper",
    )
    few: str | None = option(
        "Also Table 2, with so few real slices: slices:1000 or patients:15.",
        default=None,
        metavar="slices:N|patients:N",
        shown="none in the demo, slices:1000 for the paper",
    )
    gan_on: str | None = option(
        "Slices that the GAN of Table 2 learns from: few, or all.", default=None, choices=GAN_ON, shown=FEW
    )
    kimg: float | None = option("Train GANs for this many kimg instead.", default=None, above=0)
    steps: int | None = option("Train each U-Net for this many steps instead.", default=None, least=1)
    patients: int | None = option("Make this many phantom patients instead (demo).", default=None, least=20)
    convergence: bool | None = option(
        "Also train U-Nets for half and for two times the steps.",
        default=None,
        shown="not in the demo",
    )


@click.command(context_settings=HELP)
@options(Options, "asked")
@options(RunJobs, "how")
@reports_user_errors
def main(asked: Options, how: RunJobs) -> None:
    """Reproduce the paper's tables: U-Nets trained on real slices, fakes, or both, and tested on real patients.

    A job is skipped if its options, inputs and results are the same as after the last run.
    """
    start = time.time()
    wanted, slots = configure(asked), how.slots
    graph = Graph(Path(asked.outdir), PROGRAMS, all_jobs(wanted, on_gpus=bool(slots.gpus)))
    graph.refuse_strangers(WRITTEN)
    if how.dry_run:
        click.echo(graph.plan(slots))
        return
    slices = Graph(graph.outdir, PROGRAMS, list(slice_jobs(wanted)))
    with held(graph.outdir) as lock:
        slices.run(slots, lock)
        check(slices, graph, wanted, slots)
        graph.run(slots, lock)
        report(graph, wanted)
    print(f"\nAll jobs took {format_time(time.time() - start)}.")
    print(what_next(graph, wanted))


def configure(asked: Options) -> Wanted:
    """Return what is wanted: the preset, with values replaced by the user's. Raises UserError where they don't fit."""
    if asked.source is None and asked.preset == "paper":
        raise UserError("--preset=paper needs --source, the folder of BraTS 2018 with HGG and LGG in it")
    if asked.source is not None and asked.preset == "demo":
        raise UserError("--preset=demo makes its own patients and takes no --source; --preset=paper does")
    if asked.patients is not None and asked.preset == "paper":
        raise UserError("--patients is the number of phantoms; --preset=paper uses the patients in --source")
    if asked.source is not None and not Path(asked.source).is_dir():
        raise UserError(f"{asked.source}: no such folder; --source is the folder of BraTS 2018 with HGG and LGG in it")
    usual = PRESETS[asked.preset]
    preset = replace(
        usual,
        train={**usual.train, **given({"kimg": asked.kimg})},
        unet={**usual.unet, **given({"steps": asked.steps})},
        phantom={**usual.phantom, **given({"patients": asked.patients})},
        **given({"replicates": asked.replicates, "gans": asked.gans, "convergence": asked.convergence}),
    )
    few = asked.few or usual.few
    if asked.gan_on is not None and few is None:
        raise UserError(
            f"--gan-on {asked.gan_on} is about Table 2, which the demo makes with --few, such as slices:300"
        )
    wanted = Wanted(preset, asked.source, Few.parse(few) if few else None, asked.gan_on or FEW)
    if wanted.gans not in (1, preset.replicates):
        raise UserError(
            f"--gans {wanted.gans}: replicate r learns from the fakes of GAN r, so expected 1 or the number of "
            f"--replicates, {preset.replicates}"
        )
    return wanted


def check(slices: Graph, graph: Graph, wanted: Wanted, slots: Slots) -> None:
    """Raise UserError for real slices that an experiment can't use, before any training."""
    from segmentation.run_experiment import check_real_slices, tell_of_old_report  # torch takes seconds to import

    check_real_slices(slices, wanted.plans)
    tell_of_old_report(graph, slots)


def report(graph: Graph, wanted: Wanted) -> None:
    """Collect the results of all experiments, write them, and print their tables."""
    # Imported here, because torch takes seconds to import and --help should not.
    from segmentation.run_experiment import finish

    finish(graph, wanted.plans, graph.outdir)


def what_next(graph: Graph, wanted: Wanted) -> str:
    """Say where pictures are, and suggest commands to continue with."""
    (snapshot,) = graph.results("gan-1")
    return f"""
Fakes, contrasts and labels: {graph.results("panels")[0]}
What to try next
  python generate.py --network={snapshot} --seeds=100-123 --trunc=0.7 --outdir=out
  python dataset_tool.py convert --source=<your BraTS folder> --dest=data --resolution=128
  python reproduce.py --preset=paper --source=<BraTS 2018 training folder> --outdir=runs/paper
For research only, not for diagnosis. Synthetic slices are not a means of anonymization."""


if __name__ == "__main__":
    run(main)

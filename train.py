"""Train a GAN on an archive of joint slices.

python train.py --outdir=runs --data=data/train.zip --cfg=stylegan2 --mirror=1
python train.py --resume=runs/00000-train-mirror-stylegan2
"""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from dnnlib.cli import HELP, options
from dnnlib.config import to_json
from dnnlib.errors import UserError, reports_user_errors
from dnnlib.failures import failure_log
from dnnlib.processes import exit_status
from dnnlib.system import run
from torch_utils.launching import launch, ranks_around
from torch_utils.memory import keep_freed_memory, naming_what_to_lower
from torch_utils.stopping import ending_at_ctrl_c
from training.config import TrainingConfig
from training.division import largest_part
from training.options import DataConfig, FolderOptions, RunOptions
from training.recipes import Recipe
from training.resuming import run_to_resume

if TYPE_CHECKING:
    from torch_utils.distributed import World
    from training.beginning import Begun

LOWER = "--batch-gpu, --batch, --cbase or --cmax"  # what takes most of the memory


@click.command(context_settings=HELP)
@options(FolderOptions, "folders")
@options(DataConfig, "data", unless_given="")
@options(RunOptions, "asked", unless_given="")
@options(Recipe, "recipe", unless_given="the recipe's")
@reports_user_errors
@naming_what_to_lower(LOWER)
@ending_at_ctrl_c()
def main(folders: FolderOptions, data: dict[str, Any], asked: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Train a GAN that generates contrasts and label maps jointly.

    Prints a status line per tick. Writes a run folder with log.txt, training_options.json, stats.jsonl, reals.png,
    fakesNNNNNN.png, network-snapshot-NNNNNN.safetensors, and states from which an interrupted run continues. Runs on
    the first GPU, on more with --gpus, or on the CPU.
    """
    if "best" in asked:
        raise UserError(f"--best={asked['best']}: nothing is measured in training yet, so no snapshot is the best")
    ranks = ranks_around()
    processes = count_processes(folders, asked, ranks)
    if processes > 1 and ranks is None and not folders.dry_run:
        sys.exit(launch(processes))

    # Imported here, because torch takes seconds to import and --help should not.
    from torch_utils.distributed import joined
    from training.beginning import Given, begun, make_plan

    given = Given(data, asked, recipe)
    if folders.dry_run:
        plan = make_plan(folders, given, processes)
        print(json.dumps(to_json(plan.now.config), indent=2))
        print("\n".join([*plan.remarks, "Dry run: nothing was trained or written."]))
        return
    keep_freed_memory()
    with joined() as world, begun(world, folders, given) as work:
        if work is not None:
            train(world, work)


def count_processes(folders: FolderOptions, asked: dict[str, Any], ranks: int | None) -> int:
    """Return how many processes are to train. ranks: those that torchrun has started, this one included."""
    if ranks is not None:
        return ranks
    if "gpus" not in asked and folders.resume is not None:
        return run_to_resume(folders.resume).request.options.gpus
    return asked.get("gpus", 1)


def train(world: World, work: Begun) -> None:
    """Train a run to its end, and say what came of it. Exits with a signal's status if one has stopped it."""
    from torch_utils.precision import set_precision
    from training import training_loop
    from training.beginning import most_frequent_class

    run, dataset, log, chosen = work
    set_precision(run.config.tf32, benchmark=not chosen.nobench)
    again = f"Continue with: python train.py --resume={shlex.quote(str(run.folder))}"
    with failure_log(run.folder / "log.txt", again), naming_what_to_lower(what_to_lower(run.config, world.size)):
        try:
            outcome = training_loop.train(run, dataset, world, log)
        except KeyboardInterrupt:
            log(again)
            raise
    log()
    if outcome.snapshot is not None:
        log(f"Saved {outcome.snapshot} after {outcome.kimg:g} kimg")
    if outcome.stopped_by:
        log(again)
        sys.exit(exit_status(outcome.stopped_by))
    one = f" --class={shlex.quote(most_frequent_class(dataset))}" if run.config.data.cond else ""
    log(f"Next: python generate.py --network={shlex.quote(str(run.folder))} --seeds=0-15{one} --outdir=out")


def what_to_lower(config: TrainingConfig, processes: int) -> str:
    """Name the options that save memory, with a --batch-gpu of about half if the run can go on with it."""
    group = config.discriminator.mbstd_group_size
    half = largest_part(config.batch, config.batch_gpu // 2, group, processes)
    return f"--batch-gpu to {half}, or --cbase or --cmax" if half and half >= group else LOWER


if __name__ == "__main__":
    run(main)

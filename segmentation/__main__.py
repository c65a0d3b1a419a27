"""Train a U-Net on archives of joint slices, evaluate it on the slices of other patients, and segment volumes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

# This project's modules come before those of the working folder; and `python <project>/segmentation` finds them, with
# this folder behind all others, so that its files aren't taken for Python's own of that name, such as statistics.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.sort(key=lambda place: Path(place).resolve() == Path(__file__).resolve().parent)

from dnnlib.cli import HELP, options
from dnnlib.errors import reports_user_errors
from dnnlib.slots import RunJobs
from dnnlib.system import run
from segmentation.config import EvaluateOptions, PredictOptions, TrainPaths, TrainUNetConfig, UNetRecipe
from segmentation.experiment import RECIPES
from segmentation.experiment_options import ExperimentOptions
from slices.convert.source import SourceOptions
from torch_utils.memory import keep_freed_memory, naming_what_to_lower


@click.group(context_settings=HELP)
def main() -> None:
    """Train a U-Net on joint slices, and measure its Dice on the slices of other patients. For research use only."""


@main.command(context_settings=HELP)
@options(TrainPaths, "paths")
@options(TrainUNetConfig, "config")
@reports_user_errors
@naming_what_to_lower("--batch or --width")
def train(paths: TrainPaths, config: TrainUNetConfig) -> None:
    """Train a U-Net: contrasts in, lesion classes out. Give its slices as --data, or as an --arm of an experiment."""
    keep_freed_memory()
    # Imported when the options are known to be good: torch and MONAI take seconds.
    from segmentation.fit import train_unet

    train_unet(config, paths.archives, paths.outdir, paths.force, paths.exclude, arm=paths.chosen_arm, val=paths.val)


@main.command(context_settings=HELP)
@options(EvaluateOptions, "asked")
@reports_user_errors
@naming_what_to_lower("--batch")
def evaluate(asked: EvaluateOptions) -> None:
    """Dice of each examination's stacked slices, per region and label class; mean and SD over the patients."""
    from segmentation.evaluate import PICTURE, RESULTS, evaluate_archive
    from segmentation.report import describe_data, evaluation_table

    evaluation = evaluate_archive(
        asked.model,
        asked.data,
        asked.outdir,
        force=asked.force,
        allow_overlap=asked.allow_overlap,
        allow_other_pixels=asked.allow_other_pixels,
        batch=asked.batch,
    )
    click.echo(describe_data(evaluation))
    click.echo(evaluation_table(evaluation).text())
    click.echo(f"written to {asked.outdir}: {RESULTS}, {PICTURE}")


@main.command(context_settings=HELP)
@options(PredictOptions, "asked")
@options(SourceOptions, "data")
@reports_user_errors
@naming_what_to_lower("--batch")
def predict(asked: PredictOptions, data: SourceOptions) -> None:
    """Segment NIfTI volumes: a mask <case>.nii.gz for every case of a folder, with or without masks of its own.

    The folder is described as for `dataset_tool.py convert`, by the same options; BraTS and the Decathlon are
    recognized by their names. Masks have the shape and the affine of the case's images.
    """
    from segmentation.volumes import predict_folder

    click.echo(predict_folder(data, asked).describe(asked.dest))


@main.command(context_settings=HELP)
@options(ExperimentOptions, "asked")
@options(UNetRecipe, "given", unless_given="the recipe's", decides=RECIPES["full"])
@options(RunJobs, "how")
@reports_user_errors
def experiment(asked: ExperimentOptions, given: dict[str, Any], how: RunJobs) -> None:
    """Train and test the U-Nets of all arms and replicates, compare them, and write one page about it.

    Each training and each test is a job, skipped if nothing has changed. The same command continues after any
    interruption.
    """
    from segmentation.run_experiment import run_experiment

    run_experiment(asked, given, how)


if __name__ == "__main__":
    run(main, prog_name="python -m segmentation")

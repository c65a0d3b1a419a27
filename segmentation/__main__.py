"""Train a U-Net on archives of joint slices, and evaluate it on the slices of other patients."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

# This project's modules come before those of the working folder; and `python <project>/segmentation` finds them.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dnnlib.errors import reports_user_errors
from dnnlib.system import run
from segmentation.config import EVALUATED_AT_ONCE, TrainUNetConfig
from torch_utils.memory import keep_freed_memory, naming_what_to_lower

_DEFAULTS = {f.name: f.default for f in dataclasses.fields(TrainUNetConfig)}


def _option(name: str, help: str):
    """An option of the training, with its default where the configuration has it."""
    return click.option(f"--{name}", type=type(_DEFAULTS[name]), default=_DEFAULTS[name], show_default=True, help=help)


@click.group()
def main() -> None:
    """Train a U-Net on joint slices, and measure its Dice on the slices of other patients. For research use only."""


@main.command()
@click.option(
    "--data",
    "archives",
    metavar="ZIP",
    multiple=True,
    required=True,
    help="Archive of slices, real or generated. Repeat it to mix several: all slices of their union count alike.",
)
@click.option(
    "--exclude",
    metavar="ZIP",
    multiple=True,
    help="Archive whose patients must not be in --data, such as test.zip, neither themselves nor through a GAN. "
    "May be repeated.",
)
@click.option("--steps", type=int, required=True, help="Optimisation steps: the budget, the same for every arm.")
@click.option("--outdir", metavar="DIR", required=True, help="Folder for unet.safetensors, training.json and log.txt.")
@_option("batch", "Slices per step.")
@_option("lr", "Learning rate of Adam at the start; a cosine takes it to 0.")
@_option("seed", "Of the initial weights, the order of the slices, and the flips.")
@_option("width", "Channels at full resolution; levels have this × (1, 1, 2, 4, 8). Small widths suit a laptop.")
@_option("empty", "Share of the slices that are blank, as those beyond the ends of a head; the same in every arm.")
@click.option(
    "--lesion-free",
    type=float,
    metavar="SHARE",
    help="Share of the slices that have no lesion, of --data's own; the rest then has one.  [default: as they come]",
)
@_option("workers", "Processes that read slices, where these don't fit in memory.")
@click.option("--force", is_flag=True, help="Replace a U-Net that is in --outdir already.")
@reports_user_errors
@naming_what_to_lower("--batch or --width")
def train(archives: tuple[str, ...], exclude: tuple[str, ...], outdir: str, force: bool, **options) -> None:
    """Train a U-Net: contrasts in, lesion classes out. Slices are flipped left to right at random."""
    config = TrainUNetConfig(**options)
    keep_freed_memory()
    # after the options are known to be good: torch and MONAI take seconds to import
    from segmentation.fit import train_unet

    train_unet(config, archives, outdir, force, exclude)


@main.command()
@click.option("--model", metavar="PATH", required=True, help="A folder that `train` wrote, or a unet.safetensors.")
@click.option("--data", metavar="ZIP", required=True, help="Archive of the patients to test on.")
@click.option("--outdir", metavar="DIR", required=True, help="Folder for results.json and patients.png.")
@click.option(
    "--allow-overlap",
    is_flag=True,
    help="Evaluate even if the U-Net knows patients of --data, from their slices or through a GAN; the results say so.",
)
@click.option(
    "--allow-other-pixels",
    is_flag=True,
    help="Evaluate even if pixels of --data have other mm than those that the U-Net learned from; the results say so.",
)
@click.option(
    "--batch", type=click.IntRange(1), default=EVALUATED_AT_ONCE, show_default=True, help="Slices segmented at a time."
)
@click.option("--force", is_flag=True, help="Replace the results that are in --outdir already.")
@reports_user_errors
@naming_what_to_lower("--batch")
def evaluate(model: str, data: str, outdir: str, force: bool, **options) -> None:
    """Dice of each examination's stacked slices, per region and label class; mean and SD over the patients."""
    from segmentation.evaluate import PICTURE, RESULTS, evaluate_archive
    from segmentation.report import describe_data, evaluation_table

    evaluation = evaluate_archive(model, data, outdir, force, **options)
    click.echo(describe_data(evaluation))
    click.echo(evaluation_table(evaluation).text())
    click.echo(f"written to {outdir}: {RESULTS}, {PICTURE}")


if __name__ == "__main__":
    run(main, prog_name="python -m segmentation")

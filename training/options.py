"""Options of train.py besides its recipe. This file imports no torch, so that --help answers at once."""

from __future__ import annotations

from dataclasses import dataclass

from dnnlib.cli import Checked, option
from dnnlib.errors import UserError
from training.recipes import CFG_NAMES


@dataclass(frozen=True)
class DataConfig(Checked):
    """The slices to train on."""

    path: str = option("Archive made by dataset_tool.py.", flag="--data", metavar="ZIP")
    mirror: bool = option("Double the data by left-right flips.", default=False)
    subset: int | None = option(
        "Train on N slices only, drawn with --seed.", default=None, metavar="N", shown="all slices", least=1
    )
    cond: bool = option("Condition on the archive's class labels.", default=False)
    workers: int = option("Processes that read data too large for memory.", default=2, least=0)


@dataclass(frozen=True, kw_only=True)
class FolderOptions(Checked):
    """Which run folder train.py works in."""

    outdir: str | None = option(
        "Begin in a new folder in this one, such as 00000-train-auto.", default=None, metavar="DIR"
    )
    run_dir: str | None = option(
        "Begin in this folder, or continue the run that is there; for commands that are started again.",
        default=None,
        metavar="DIR",
    )
    resume: str | None = option(
        "Continue the run in this folder with its own options, and with those given here.", default=None, metavar="DIR"
    )
    force: bool = option("Transfer although less than half of the weights fit.", switch=True)
    dry_run: bool = option("Print the resolved configuration and stop.", switch=True, short="-n")

    def __post_init__(self) -> None:
        super().__post_init__()
        places = {"--outdir": self.outdir, "--run-dir": self.run_dir, "--resume": self.resume}
        told = [name for name, value in places.items() if value is not None]
        if not told:
            raise UserError(
                "no folder is given: --outdir=DIR begins in a new one, --run-dir=DIR begins or continues in this one, "
                "--resume=DIR continues in this one"
            )
        if len(told) > 1:
            raise UserError(f"{' and '.join(told)} exclude each other: give one of them")


@dataclass(frozen=True, kw_only=True)
class RunOptions(Checked):
    """Options of train.py besides its folder, its data and its recipe."""

    exclude: tuple[str, ...] = option(
        "Archive whose patients must not be in --data, such as test.zip. May be repeated.", default=(), metavar="ZIP"
    )
    cfg: str = option("Recipe of hyperparameters; the paper used stylegan2.", default="auto", choices=CFG_NAMES)
    seed: int = option("Seed of weights, latents and data order.", default=0, least=0, most=2**32 - 1)
    snap: int = option(
        "Ticks of 4 kimg from one snapshot to the next; 0 saves one at the end only.", default=50, least=0
    )
    gpus: int = option(
        "Processes to train with, each on a GPU of its own if there are GPUs.", default=1, least=1, most=1024
    )
    tf32: bool = option("On a GPU, multiply float32 numbers faster, with factors rounded to 10 bits.", default=False)
    nobench: bool = option(
        "Take cuDNN's usual algorithms, without trying which are fastest; saves memory.", default=False
    )
    state_minutes: float = option(
        "Minutes from one saved state to the next; an interrupted run continues from the last one.",
        default=10,
        above=0,
    )
    max_bad_steps: int = option(
        "End after this many steps in a row with gradients that are not finite.", default=50, least=1
    )
    transfer: str | None = option(
        "Begin with the weights of this network: a snapshot, a run folder, or a published .pkl.",
        default=None,
        metavar="FILE|DIR",
        optional=True,
    )
    no_patients: bool = option(
        "State that the file of --transfer has learned from no patient that it does not name, as a network of "
        "photographs. For files that do not say it themselves.",
        default=False,
        optional=True,
    )
    best: str | None = option(
        "Keep the snapshot with the smallest value of this measure; NAME:max keeps the largest. For programs that give "
        "a training measures; this one has none yet.",
        default=None,
        metavar="NAME",
    )

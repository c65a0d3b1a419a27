"""What augmentation costs: the share of a training step that it adds, for several p.

    python benchmarks/augment.py --p=0.5 --rounds=5

Trains with and without augmentation in turn, in one process, a period of 16 steps each, in which every phase is due. A
share is the median, over rounds, of (with − without) / without. A negative one is noise of the machine. CPU seconds are
those of all threads.
"""

import sys
import tempfile
from pathlib import Path
from statistics import median

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.setups import PERIOD, SETUPS, Cost, Setup, TimedTrainer, make_trainer
from dnnlib.system import run
from dnnlib.text import format_table
from torch_utils.distributed import World
from torch_utils.memory import keep_freed_memory
from torch_utils.ops import native

GOAL = 0.25  # at p = 0.5, of bgc


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n"))
@click.option(
    "--p", "probabilities", multiple=True, type=click.FloatRange(0, 1), default=(0.1, 0.3, 0.5), show_default=True
)
@click.option("--augpipe", default="bgc", show_default=True, help="What is done to images.")
@click.option("--setup", type=click.Choice(list(SETUPS)), default="64", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Periods of each side.")
def main(probabilities: tuple[float, ...], augpipe: str, setup: str, rounds: int) -> None:
    keep_freed_memory()
    world = World()
    operators = "native operators" if native.available(world.device.type) else "operators in plain PyTorch"
    print(f"PyTorch {torch.__version__} on {world.device}, {torch.get_num_threads()} threads, {operators}")
    chosen = SETUPS[setup]
    sides: dict[float | None, TimedTrainer] = {}
    with tempfile.TemporaryDirectory() as folder:
        for p in (None, *probabilities):
            given = chosen.given if p is None else {**chosen.given, "aug": "fixed", "p": p, "augpipe": augpipe}
            sides[p] = make_trainer(Setup(chosen.resolution, given, chosen.cfg), Path(folder), world)
        costs: dict[float | None, list[Cost]] = {p: [] for p in sides}
        for _ in range(rounds):
            for p, trainer in sides.items():
                costs[p].append(trainer.train_period())
    print(f"{augpipe} at {chosen.describe()}: median of {rounds} rounds of {PERIOD} steps")
    print(format_table(["p", "s per kimg", "CPU s per kimg", "share", "share of CPU s"], rows(costs)))
    print(f"aim: at most {GOAL:.0%} for bgc at p = 0.5")


def rows(costs: dict[float | None, list[Cost]]) -> list[list[str]]:
    """Rows of the table. costs: of each round; None: without augmentation."""
    table = []
    for p, with_p in costs.items():
        row = ["none" if p is None else f"{p:g}"]
        for kind in ("seconds", "cpu"):
            row.append(f"{median(getattr(cost, kind) for cost in with_p):.2f}")
        for kind in ("seconds", "cpu"):
            pairs = zip(with_p, costs[None], strict=True)
            share = median(getattr(cost, kind) / getattr(without, kind) - 1 for cost, without in pairs)
            row.append("" if p is None else f"{share:.1%}")
        table.append(row)
    return table


if __name__ == "__main__":
    run(main)

"""One process with all cores against several ranks that share them, in turn, on the CPU.

    python benchmarks/ranks.py --ranks=2

The first rank trains alone for a period of 16 steps, with all cores, while the others sleep. Then all train together
for a period, with their shares of the cores and of the minibatch. This is repeated; figures are medians.
"""

import os
import sys
import tempfile
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.setups import SETUPS, make_trainer, medians
from dnnlib.errors import reports_user_errors
from dnnlib.processes import usable_cpus
from dnnlib.system import run
from torch_utils.distributed import World, joined
from torch_utils.launching import launch, ranks_around
from torch_utils.memory import keep_freed_memory


@click.command()
@click.option("--ranks", type=click.IntRange(2), default=2, show_default=True, help="Processes.")
@click.option("--threads", type=click.IntRange(1), default=usable_cpus(), show_default=True, help="Of all ranks.")
@click.option("--setup", type=click.Choice(list(SETUPS)), default="64", show_default=True, help="The training.")
@click.option("--periods", type=click.IntRange(1), default=8, show_default=True, help="Periods of each side.")
@reports_user_errors
def main(ranks: int, threads: int, setup: str, periods: int) -> None:
    """Compare one process with several ranks."""
    if ranks_around() is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        sys.exit(launch(ranks))
    with joined() as world, tempfile.TemporaryDirectory() as folder:
        told = compare(world, setup, threads, periods, Path(folder))
        if world.first:
            print(told)


def compare(world: World, setup: str, threads: int, periods: int, folder: Path) -> str:
    import torch

    keep_freed_memory()
    torch.set_num_threads(threads)
    alone = make_trainer(SETUPS[setup], folder, World(device=world.device)) if world.first else None
    world.meet()
    torch.set_num_threads(max(threads // world.size, 1))
    together = make_trainer(SETUPS[setup], folder, world)
    costs_alone, costs_together = [], []
    for _ in range(periods):
        if alone is not None:
            torch.set_num_threads(threads)
            costs_alone.append(alone.train_period())
            torch.set_num_threads(max(threads // world.size, 1))
        world.meet()
        # They leave `meet` up to a tenth of a second apart, but a sum together.
        world.add_up(torch.zeros(1))
        costs_together.append(together.train_period())
    # CPU seconds of all ranks.
    cpu = torch.tensor(medians(costs_together).cpu, dtype=torch.float64)
    world.add_up(cpu)
    if alone is None:
        return ""
    one, several = medians(costs_alone), medians(costs_together)
    each = torch.get_num_threads()
    return (
        f"1 process × {threads} threads: {one.seconds:.2f} s, {one.cpu:.2f} CPU s per kimg\n"
        f"{world.size} ranks × {each} threads: {several.seconds:.2f} s, {float(cpu):.2f} CPU s per kimg\n"
        f"ratio of seconds: {several.seconds / one.seconds:.3f} (aim: at most 1.15)"
    )


if __name__ == "__main__":
    run(main)

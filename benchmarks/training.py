"""What training costs: phases, draws, data, states, ranks; and generation.

    python benchmarks/training.py --only=phases --only=ranks

phases: seconds of each phase for several trainings, with the time to wait for data, and to draw random numbers by key
instead of all at once. generation: seconds of an image. state: how long a training stands still for its state. data:
waiting for slices in memory, and for slices that workers read. ranks: two processes with a half of the cores each
against one with all. synchronizations: how often a step makes a GPU wait. Each takes two to three minutes at most on
two cores.

Figures are medians, and two sides of a ratio are measured in turn. Operations counted are those of convolutions and
matrix products, forward and backward, as sums over taps and channels would take them (native 3×3 convolutions get by
with fewer); "share" is their speed over that of a 4096³ float32 product, which is timed again before every period of
16 steps, and every few images. CPU seconds are those of all threads. Compare figures of one run with each other:
machines differ, and one machine differs from minute to minute. Take them on an idle machine.
"""

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.phases import time_generation, time_phases
from benchmarks.setups import PAPER, SETUPS, in_precision
from benchmarks.upkeep import count_synchronizations, time_data, time_states
from dnnlib.system import run
from torch_utils.distributed import default_device
from torch_utils.ops import native
from training.recipes import PRECISIONS

PARTS = ("phases", "generation", "state", "data", "ranks", "synchronizations")


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n"))
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Do this; may be repeated.  [default: all]")
@click.option("--setup", multiple=True, type=click.Choice(list(SETUPS)), help="Of `phases`.  [default: all]")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Of `phases`.  [default: the setup's]")
@click.option("--periods", type=click.IntRange(1), default=3, show_default=True, help="Periods of 16 steps.")
@click.option("--images", type=click.IntRange(1), default=16, show_default=True, help="Images at 256×256.")
def main(only: tuple[str, ...], setup: tuple[str, ...], precision: str | None, periods: int, images: int) -> None:
    device = default_device()
    operators = "native operators" if native.available(device.type) else "operators in plain PyTorch"
    print(f"PyTorch {torch.__version__} on {device}, {torch.get_num_threads()} threads, {operators}")
    setups = [SETUPS[name] for name in setup or SETUPS] + [PAPER] * (device.type == "cuda")
    setups = [in_precision(chosen, precision) if precision else chosen for chosen in setups]
    for part in only or PARTS:
        if part == "phases":
            for chosen in setups:
                title(f"phases at {chosen.describe()}")
                print(in_a_process(time_phases, chosen, periods))
        elif part == "generation":
            title("generation at 256×256, `auto`")
            print(in_a_process(time_generation, images))
        elif part == "state":
            title("states")
            print(in_a_process(time_states, periods))
        elif part == "data":
            title(f"data, {SETUPS['64'].describe()}")
            print(in_a_process(time_data, periods))
        elif part == "ranks":
            title(f"ranks on the CPU, {SETUPS['64'].describe()}")
            command = [sys.executable, str(Path(__file__).with_name("ranks.py")), f"--periods={2 * periods}"]
            subprocess.run(command, check=True)
        else:
            title(f"synchronizations with the GPU, {SETUPS['64'].describe()}")
            print(in_a_process(count_synchronizations))


def title(text: str) -> None:
    print(f"\n{text}", flush=True)


def in_a_process(function: Callable[..., str], *given) -> str:
    """Call the function in a new process, so that nothing of earlier parts is in its memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


if __name__ == "__main__":
    run(main)

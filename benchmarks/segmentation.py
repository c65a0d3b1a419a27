"""What a step of a U-Net's training costs: MONAI's network as it comes, against ours.

    python benchmarks/segmentation.py --setup=demo

plain: the network, the loss and PyTorch's fused Adam as they are. ours: segmentation/optimizer.py, which computes the
same function in other ways (segmentation/fast_unet.py). Both train the same network on the same noise, a step of one
after a step of the other in one process, with one thread and with two. Each setup takes a minute at most on two cores.

Figures are medians over the steps. CPU seconds are those of all threads, and the ratios ours : plain are medians of the
ratios of neighboring steps. Machines differ, and one machine differs from minute to minute: compare ratios only. Two
threads that share their cores with other programs wait for each other, and burn CPU seconds meanwhile.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.setups import Cost, medians, synchronize
from benchmarks.training import in_a_process, title
from dnnlib.system import run
from dnnlib.text import format_table
from segmentation.config import TrainUNetConfig
from segmentation.optimizer import Optimizer, segmentation_loss
from segmentation.unet import build_unet, configure_unet
from slices.schema import BRATS
from torch_utils.distributed import default_device
from torch_utils.memory import keep_freed_memory
from torch_utils.ops import native

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # images, truth -> loss
THREADS = (1, 2)


class Setup(NamedTuple):
    """A training."""

    resolution: int
    width: int
    batch: int = 8

    def describe(self) -> str:
        return f"{self.resolution}×{self.resolution}, width {self.width}, batch {self.batch}"


SETUPS = {
    "demo": Setup(64, 8),
    "64": Setup(64, 16),
    "wide": Setup(64, 32),
    "128": Setup(128, 8),
}
PAPER = Setup(256, 32, 32)


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n"))
@click.option("--setup", multiple=True, type=click.Choice(list(SETUPS)), help="May be repeated.  [default: all]")
@click.option("--steps", type=click.IntRange(2), default=12, show_default=True, help="Steps of each.")
def main(setup: tuple[str, ...], steps: int) -> None:
    device = default_device()
    operators = "native operators" if native.available("cpu") else "operators in plain PyTorch"
    print(f"PyTorch {torch.__version__} on {device}, {operators}")
    for chosen in [SETUPS[name] for name in setup or SETUPS] + [PAPER] * (device.type == "cuda"):
        title(chosen.describe())
        rows = [in_a_process(time_steps, chosen, steps, threads) for threads in THREADS]
        columns = ["threads", "plain s", "ours s", "ratio", "plain CPU s", "ours CPU s", "ratio"]
        print(format_table(columns, rows))


def time_steps(setup: Setup, steps: int, threads: int) -> list[str]:
    """A row of the table. Call it in a process of its own, which it gives so many threads."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    device = default_device()
    images = torch.rand(setup.batch, BRATS.num_contrasts, setup.resolution, setup.resolution, device=device) * 2 - 1
    truth = torch.randint(BRATS.num_maps, [setup.batch, 1, setup.resolution, setup.resolution], device=device)
    config = TrainUNetConfig(steps=steps + 2, batch=setup.batch, width=setup.width)
    networks = [build_unet(configure_unet(BRATS, setup.resolution, setup.width)).train().to(device) for _ in range(2)]
    sides: list[Step] = [plain_step(networks[0], config), Optimizer(networks[1], config).step]
    costs: list[list[Cost]] = [[], []]
    for n in range(steps + 2):
        for side, noted in zip(sides, costs, strict=True):
            start = Cost.so_far()
            side(images, truth.byte())
            synchronize(device)
            if n >= 2:  # the first ones have more to do
                noted.append(Cost.so_far().since(start))
    plain, ours = (medians(noted) for noted in costs)
    ratios = [Cost(b.seconds / a.seconds, b.cpu / a.cpu) for a, b in zip(*costs, strict=True)]
    seconds, cpu = median(r.seconds for r in ratios), median(r.cpu for r in ratios)
    return [
        str(threads),
        *(f"{plain.seconds:.4f}", f"{ours.seconds:.4f}", f"{seconds:.2f}"),
        *(f"{plain.cpu:.4f}", f"{ours.cpu:.4f}", f"{cpu:.2f}"),
    ]


def plain_step(network: torch.nn.Module, config: TrainUNetConfig) -> Step:
    """A step as MONAI's and PyTorch's defaults take it."""
    loss_of, adam = segmentation_loss(), torch.optim.Adam(network.parameters(), lr=config.lr, fused=True)

    def step(images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        loss = loss_of(network(images), truth)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        return loss.detach()

    return step


if __name__ == "__main__":
    run(main)

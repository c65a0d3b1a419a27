"""Seconds of each training phase and of generation, beside the speed of a matrix product in the same run.

    python benchmarks/training.py --periods=2

Counted are the operations of convolutions and matrix products, forward and backward, as sums over taps and channels
would take them (native 3×3 convolutions get by with fewer); "share" is their speed over that of a 4096³ float32
product. The product is timed again before every period of 16 steps, and every few images. Compare figures of one run
with each other: machines differ, and one machine differs from minute to minute. Take them on an idle machine.
"""

import math
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, register_flop_formula

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dnnlib.runs import Log
from dnnlib.system import run
from dnnlib.text import format_table
from slices.archive.writer import ArchiveWriter
from slices.dataset import SliceDataset
from slices.schema import BRATS
from torch_utils.distributed import default_device
from torch_utils.memory import keep_freed_memory
from torch_utils.ops import native
from torch_utils.ops.registered import OPERATORS
from torch_utils.stats import Statistics
from training.config import DataConfig, find_recipe, resolve
from training.minibatches import Minibatch, MinibatchSource
from training.networks.generator import Generator
from training.state import TrainingState
from training.training_step import Phase, Trainer

PERIOD = 16  # steps after which every phase has been due
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "demo": dict(batch=8, lrate=0.005, gamma=5, mixing=0, pl_weight=0, z_dim=128, cbase=1024, cmax=64, fp32=True),
    "twice as wide, all regularization": dict(batch=16, gamma=1, z_dim=128, cbase=2048, cmax=64, fp32=True),
}


@register_flop_formula(OPERATORS.conv3x3)
def _(x_shape, w_shape, *_, **__) -> int:
    n, _, height, width = x_shape
    return 2 * n * height * width * math.prod(w_shape)


@register_flop_formula(OPERATORS.conv3x3_weight_gradient)
def _(x_shape, _, w_shape, **__) -> int:
    n, _, height, width = x_shape
    return 2 * n * height * width * math.prod(w_shape)


@click.command()
@click.option("--periods", type=click.IntRange(1), default=4, show_default=True, help="counted periods of 16 steps")
@click.option("--images", type=click.IntRange(3), default=16, show_default=True, help="counted images at 256×256")
def main(periods: int, images: int) -> None:
    keep_freed_memory()
    device = default_device()
    operators = "native operators" if native.available(device.type) else "operators in plain PyTorch"
    print(f"PyTorch {torch.__version__} on {device}, {torch.get_num_threads()} threads, {operators}")
    print()
    product = MatrixProduct(device)
    with tempfile.TemporaryDirectory() as folder:
        archive = draw_archive(Path(folder) / "noise.zip", resolution=64)
        for name, given in CONFIGURATIONS.items():
            print(f"{name}: 64×64, " + ", ".join(f"{k} {v:g}" for k, v in given.items()))
            print(time_training(archive, Path(folder), given, periods, product) + "\n")
    seconds, operations, speed = time_generation(device, images, product)
    print(f"generation at 256×256, `auto` networks: {seconds:.3f} s an image (median), ", end="")
    print(f"{operations / 1e9:.1f} GFLOP, share {operations / seconds / speed:.0%}")
    print(f"4096³ float32 matrix product meanwhile: {speed / 1e9:.0f} GFLOP/s (median)")
    print(f"peak memory: {peak_memory(device) / 2**30:.2f} GiB")


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class OperationCounter(TorchDispatchMode):
    """Counts what PyTorch's registry has a formula for: convolutions and matrix products. (Its own FlopCounterMode
    watches modules as well, which does not go with autograd.grad.)"""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class MatrixProduct:
    """The speed of a float32 product of two n×n matrices: what the machine can do at the time."""

    def __init__(self, device: torch.device, n: int = 4096) -> None:
        self.factors = torch.randn(2, n, n, device=device)
        self.speed()  # the first one has more to do

    def speed(self) -> float:
        """Operations a second."""
        synchronize(self.factors.device)
        start = time.perf_counter()
        self.factors[0] @ self.factors[1]
        synchronize(self.factors.device)
        return 2 * self.factors.shape[1] ** 3 / (time.perf_counter() - start)


def draw_archive(path: Path, resolution: int, count: int = 64) -> Path:
    random = np.random.RandomState(0)
    with ArchiveWriter(path, BRATS, resolution, made={"command": "benchmarks/training.py"}) as archive:
        for i in range(count):
            contrasts = random.randint(0, 256, [BRATS.num_contrasts, resolution, resolution]).astype(np.uint8)
            classes = random.randint(0, BRATS.num_maps, [resolution, resolution])
            archive.add(BRATS.join(contrasts, classes), patient=f"noise-{i}")
    return path


def time_training(archive: Path, folder: Path, given: dict[str, Any], periods: int, product: MatrixProduct) -> str:
    """A table of the phases: seconds each time, and per kimg; and the speed of the product meanwhile."""
    dataset = SliceDataset(archive)
    data = DataConfig(str(archive))
    recipe = replace(find_recipe("auto", dataset.resolution), **given)
    config = resolve(recipe, data, dataset.schema, dataset.resolution, dataset.c_dim, snap=0)
    device = default_device()
    state = TrainingState.initial(config, device)
    source = MinibatchSource(config, dataset, device, Log(folder / "log.txt"))
    trainer = Trainer(config, state, source, Statistics())
    for _ in range(2):
        trainer.step()
    operations = {phase.name: count_operations(trainer, phase) for phase in trainer.phases}
    trainer.statistics.collect()
    state.step = 0  # every phase falls due in the first counted step
    totals, speeds = [], []
    for step in range(PERIOD * periods):
        if step % PERIOD == 0:
            speeds.append(product.speed())
        start = time.perf_counter()
        trainer.step()
        synchronize(device)
        totals.append(time.perf_counter() - start)
    speed = statistics.median([*speeds, product.speed()])
    moments = trainer.statistics.collect()
    steps_per_kimg = 1000 / config.batch
    rows, counted = [], 0.0
    for phase in trainer.phases:
        seconds = moments[f"Timing/{phase.name}_sec"].mean
        per_kimg = seconds * steps_per_kimg / phase.interval
        counted += per_kimg
        done = operations[phase.name]
        rows.append([phase.name, f"{seconds:.3f}", f"1 in {phase.interval}", f"{per_kimg:.2f}"])
        rows[-1] += [f"{done / 1e9:.1f}", f"{done / seconds / speed:.0%}"]
    whole = statistics.mean(totals) * steps_per_kimg
    rows.append(["rest (data, EMA)", "", "", f"{max(whole - counted, 0):.2f}", "", ""])
    rows.append(["together", "", "", f"{whole:.2f}", "", ""])
    table = format_table(["phase", "s each", "steps", "s per kimg", "GFLOP", "share"], rows)
    return f"{table}\n4096³ float32 matrix product meanwhile: {speed / 1e9:.0f} GFLOP/s (median)"


def count_operations(trainer: Trainer, phase: Phase) -> int:
    """Operations of convolutions and matrix products in one application of a phase; its gradients are dropped."""
    minibatch = Minibatch(trainer.source.next_reals(), trainer.source.draw_latents(trainer.config.batch))
    phase.network.requires_grad_(True)
    with OperationCounter() as counter:
        phase.accumulate(minibatch, 1)
    phase.network.requires_grad_(False)
    phase.optimizer.zero_grad(set_to_none=True)
    return counter.total


@torch.no_grad()
def time_generation(device: torch.device, images: int, product: MatrixProduct) -> tuple[float, int, float]:
    """(seconds, operations) of one image at 256×256 with the networks of `--cfg=auto`, one at a time, and the speed of
    the product meanwhile. Medians."""
    config = resolve(find_recipe("auto", 256), DataConfig(""), BRATS, 256).generator
    generator = Generator(config).eval().to(device)

    def generate() -> None:
        generator(torch.randn(1, config.z_dim, device=device), noise_mode="const")

    seconds, speeds = [], []
    generate()
    for image in range(images):
        if image % 4 == 0:
            speeds.append(product.speed())
        start = time.perf_counter()
        generate()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    with OperationCounter() as counter:
        generate()
    return statistics.median(seconds), counter.total, statistics.median(speeds)


if __name__ == "__main__":
    run(main)

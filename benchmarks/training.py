"""Seconds of each training phase and of generation, beside the speed of a matrix product in the same run.

    python benchmarks/training.py --periods=2

Compare figures of one run with each other: machines differ, and one machine differs from hour to hour.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dnnlib.runs import Log
from dnnlib.text import format_table
from slices.archive import ArchiveWriter
from slices.dataset import SliceDataset
from slices.schema import BRATS
from training.config import DataConfig, Overrides, resolve
from training.generator import Generator
from training.training_loop import TrainingRun

# The demo's networks and minibatch, with and without what the demo leaves out.
CONFIGURATIONS = {
    "demo": Overrides(batch=16, gamma=1, mixing=0, pl_weight=0, z_dim=128, cbase=1024, cmax=64, fp32=True),
    "demo with all regularisation": Overrides(batch=16, gamma=1, z_dim=128, cbase=1024, cmax=64, fp32=True),
}


@click.command()
@click.option("--periods", type=click.IntRange(1), default=2, show_default=True, help="counted periods of 16 steps")
@click.option("--images", type=click.IntRange(3), default=8, show_default=True, help="counted images at 256×256")
def main(periods: int, images: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"PyTorch {torch.__version__} on {device}, {torch.get_num_threads()} threads")
    print(f"4096³ float32 matrix product: {matrix_product_speed(device):.0f} GFLOP/s\n")
    with tempfile.TemporaryDirectory() as folder:
        archive = draw_archive(Path(folder) / "noise.zip", resolution=64)
        for name, overrides in CONFIGURATIONS.items():
            print(f"{name}: 64×64, " + ", ".join(f"{k} {v:g}" for k, v in vars(overrides).items() if v is not None))
            print(time_training(archive, Path(folder), overrides, 16 * periods) + "\n")
    print(f"generation at 256×256, `auto` networks: {time_generation(device, images):.3f} s an image (median)")
    print(f"4096³ float32 matrix product, again: {matrix_product_speed(device):.0f} GFLOP/s")
    print(f"resident memory at the end: {psutil.Process().memory_info().rss / 2**30:.2f} GiB")


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_product_speed(device: torch.device, n: int = 4096) -> float:
    """GFLOP/s of an n×n float32 product, median of five."""
    a, b = torch.randn(2, n, n, device=device)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(seconds[1:]) / 1e9


def draw_archive(path: Path, resolution: int, count: int = 64) -> Path:
    random = np.random.RandomState(0)
    with ArchiveWriter(path, BRATS, resolution, made={"command": "benchmarks/training.py"}) as archive:
        for i in range(count):
            contrasts = random.randint(0, 256, [BRATS.num_contrasts, resolution, resolution]).astype(np.uint8)
            classes = random.randint(0, BRATS.num_maps, [resolution, resolution])
            archive.add(BRATS.join(contrasts, classes), patient=f"noise-{i}")
    return path


def time_training(archive: Path, folder: Path, overrides: Overrides, steps: int) -> str:
    """A table of the phases: seconds each time, and per kimg. steps: a multiple of the longest interval."""
    dataset = SliceDataset(archive)
    data = DataConfig(str(archive), workers=2)
    config = resolve("auto", data, dataset.schema, dataset.resolution, dataset.c_dim, overrides, seed=0, snap=0)
    run = TrainingRun(config, dataset, folder, Log(folder / "log.txt"))
    for _ in range(2):
        run._step()
    run.statistics.collect()
    run.step = 0  # every phase falls due in the first counted step
    totals = []
    for _ in range(steps):
        start = time.perf_counter()
        run._step()
        synchronise(run.device)
        totals.append(time.perf_counter() - start)
    moments = run.statistics.collect()
    steps_per_kimg = 1000 / config.batch
    rows, counted = [], 0.0
    for phase in run.phases:
        seconds = moments[f"Timing/{phase.name}_sec"].mean
        per_kimg = seconds * steps_per_kimg / phase.interval
        counted += per_kimg
        rows.append([phase.name, f"{seconds:.3f}", f"1 in {phase.interval}", f"{per_kimg:.2f}"])
    whole = statistics.mean(totals) * steps_per_kimg
    rows.append(["rest (data, EMA)", "", "", f"{max(whole - counted, 0):.2f}"])
    rows.append(["together", "", "", f"{whole:.2f}"])
    return format_table(["phase", "s each", "steps", "s per kimg"], rows)


@torch.inference_mode()
def time_generation(device: torch.device, images: int) -> float:
    """Median seconds of one image at 256×256 with the networks of `--cfg=auto`, one image at a time."""
    config = resolve("auto", DataConfig(""), BRATS, 256, 0, Overrides(), seed=0, snap=0).generator
    generator = Generator(config).eval().to(device)
    seconds = []
    for _ in range(images + 1):
        start = time.perf_counter()
        generator(torch.randn(1, config.z_dim, device=device), noise_mode="const")
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()

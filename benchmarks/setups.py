"""The trainings that benchmarks time, and how they time them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from dnnlib.runs import Log
from slices.archive.writer import ArchiveWriter
from slices.dataset import SliceDataset
from slices.schema import BRATS
from torch_utils.distributed import World
from training.config import TrainingConfig, resolve
from training.minibatches import FakeSource, RealSource
from training.options import DataConfig
from training.recipes import find_recipe
from training.state import TrainingState
from training.training_step import Applied, Phase, Trainer

PERIOD = 16  # steps after which every phase has been due
SLICES = 64  # in an archive


class Setup(NamedTuple):
    """A training."""

    resolution: int
    given: dict[str, Any]  # values that replace the recipe's
    cfg: str = "auto"

    def describe(self) -> str:
        told = {name: value if isinstance(value, str) else f"{value:g}" for name, value in self.given.items()}
        values = "".join(f", {name} {value}" for name, value in told.items())
        return f"{self.resolution}×{self.resolution}, `{self.cfg}`{values}"


_SMALL = dict(gamma=1, z_dim=128, fp32=True)
SETUPS = {
    "demo": Setup(
        64, dict(batch=8, lrate=0.005, gamma=5, mixing=0, pl_weight=0, z_dim=128, cbase=1024, cmax=64, fp32=1)
    ),
    "64": Setup(64, dict(batch=16, cbase=2048, cmax=64, **_SMALL)),
    "32": Setup(32, dict(batch=16, cbase=1024, cmax=64, **_SMALL)),
    "128": Setup(128, dict(batch=8, cbase=4096, cmax=128, **_SMALL)),
}
PAPER = Setup(256, {}, "stylegan2")


def in_precision(setup: Setup, precision: str) -> Setup:
    """Return the same training in another precision."""
    given = {name: value for name, value in setup.given.items() if name != "fp32"}
    return setup._replace(given={**given, "precision": precision})


def configure(setup: Setup, processes: int = 1) -> TrainingConfig:
    recipe = replace(find_recipe(setup.cfg, setup.resolution, processes), **setup.given)
    return resolve(recipe, DataConfig("noise.zip"), BRATS, setup.resolution, snap=0, gpus=processes)


def draw_archive(path: Path, resolution: int) -> Path:
    """Write an archive of noise."""
    random = np.random.RandomState(0)
    with ArchiveWriter(path, BRATS, resolution, made={"command": "benchmarks/training.py"}) as archive:
        for i in range(SLICES):
            contrasts = random.randint(0, 256, [BRATS.num_contrasts, resolution, resolution]).astype(np.uint8)
            classes = random.randint(0, BRATS.num_maps, [resolution, resolution])
            archive.add(BRATS.join(contrasts, classes), patient=f"noise-{i}")
    return path


class Cost(NamedTuple):
    """What something took."""

    seconds: float
    cpu: float  # seconds of all threads of this process

    @classmethod
    def so_far(cls) -> Cost:
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: Cost) -> Cost:
        return Cost(self.seconds - start.seconds, self.cpu - start.cpu)


def medians(costs: list[Cost], factor: float = 1) -> Cost:
    """Median of seconds and of CPU seconds, times a factor."""
    return Cost(median(c.seconds for c in costs) * factor, median(c.cpu for c in costs) * factor)


@dataclass
class Costs:
    """What parts of a training took, by name, each time."""

    noted: dict[str, list[Cost]] = field(default_factory=dict)

    @contextlib.contextmanager
    def note(self, name: str) -> Iterator[None]:
        start = Cost.so_far()
        yield
        self.noted.setdefault(name, []).append(Cost.so_far().since(start))


class TimedReals(RealSource):
    """Notes how long the training waits for data."""

    costs: Costs

    def next_parts(self):
        with self.costs.note("data"):
            return super().next_parts()


class TimedTrainer(Trainer):
    """Notes what phases and data cost this process."""

    def __init__(self, *given) -> None:
        super().__init__(*given)
        assert isinstance(self.reals, TimedReals)
        self.costs = self.reals.costs = Costs()

    def apply(self, phase: Phase, *given) -> Applied:
        with self.costs.note(phase.name):
            return super().apply(phase, *given)

    @property
    def kimg_of_period(self) -> float:
        return PERIOD * self.config.batch / 1000

    def train_period(self) -> Cost:
        """Train for a period, in whose first step every phase is due. Returns its cost per kimg."""
        self.state.step = 0
        synchronize(self.world.device)
        start = Cost.so_far()
        for _ in range(PERIOD):
            self.step()
        synchronize(self.world.device)
        cost = Cost.so_far().since(start)
        return Cost(cost.seconds / self.kimg_of_period, cost.cpu / self.kimg_of_period)


def make_trainer(
    setup: Setup,
    folder: Path,
    world: World,
    memory: int | None = None,  # bytes that slices may take; None: the default
) -> TimedTrainer:
    """Return a trainer that has made its first steps, on an archive of noise in the folder."""
    path = folder / f"noise-{setup.resolution}.zip"
    if not path.exists():
        draw_archive(path, setup.resolution)
    dataset = SliceDataset(path, memory=memory)
    for n in range(len(dataset)):
        dataset[n]  # is kept, if there is memory for it; only the first epoch of a run reads the archive
    config = configure(setup, world.size)
    state = TrainingState.initial(config, world.device)
    reals = TimedReals(config, dataset, world, Log(None))
    trainer = TimedTrainer(config, state, reals, FakeSource(config, dataset, state.generator), world)
    for _ in range(2):
        trainer.step()  # the first ones have more to do
    trainer.costs.noted.clear()
    trainer.stopwatch.collect()
    return trainer


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

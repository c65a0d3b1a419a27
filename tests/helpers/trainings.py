"""Trainings that are small enough for tests."""

import contextlib
from dataclasses import replace
from pathlib import Path

import torch

from dnnlib.cli import arguments
from dnnlib.files import sha256
from dnnlib.runs import Log
from slices.dataset import SliceDataset
from torch_utils.distributed import World
from training.config import TrainingConfig, resolve
from training.minibatches import FakeSource, RealSource
from training.options import DataConfig
from training.recipes import find_recipe
from training.state import TrainingState
from training.training_step import Trainer

TINY = {"kimg": 0.016, "batch": 4, "cbase": 64, "cmax": 8, "z_dim": 8, "map_depth": 2}
TINY_OPTIONS = arguments({**TINY, "workers": 0})  # of train.py


def tiny_config(dataset: SliceDataset, cfg: str = "auto", **changes) -> TrainingConfig:
    """Configuration of four steps of four slices. changes: values of the recipe."""
    data = DataConfig(str(dataset.archive.path), cond=dataset.c_dim > 0, workers=0)
    recipe = replace(find_recipe(cfg, dataset.resolution), **{**TINY, **changes})
    return resolve(recipe, data, dataset.schema, dataset.resolution, dataset.c_dim, snap=0)


def tiny_trainer(
    tmp_path: Path,
    data: Path,
    cfg: str = "auto",
    cond: bool = False,
    world: World = World(device=torch.device("cpu")),
    **changes,
) -> Trainer:
    """A trainer before its first step, by default alone and on the CPU."""
    dataset = SliceDataset(data, use_labels=cond)
    config = tiny_config(dataset, cfg, **changes)
    state = TrainingState.initial(config, world.device)
    reals = RealSource(config, dataset, world, Log(tmp_path / "log.txt"))
    return Trainer(config, state, reals, FakeSource(config, dataset, state.generator), world)


def tiny_training(tmp_path: Path, data: Path, **changes):
    """Do a whole run of four steps, or as `changes` of the recipe say."""
    from training.run import Run
    from training.training_loop import train

    dataset, folder = SliceDataset(data), tmp_path / "run"
    folder.mkdir()
    run = Run(config=tiny_config(dataset, **changes), folder=folder, data_sha256=sha256(data))
    return train(run, dataset, World(device=torch.device("cpu")), Log(folder / "log.txt"))


@contextlib.contextmanager
def double():
    """In the block, networks and data are of float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)

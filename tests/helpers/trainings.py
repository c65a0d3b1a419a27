"""Trainings that are small enough for tests."""

from dataclasses import replace
from pathlib import Path

import torch

from dnnlib.cli import arguments
from dnnlib.runs import Log
from slices.dataset import SliceDataset
from torch_utils.stats import Statistics
from training.config import DataConfig, TrainingConfig, find_recipe, resolve
from training.minibatches import MinibatchSource
from training.state import TrainingState
from training.training_loop import Outcome, train
from training.training_step import Trainer

TINY = {"kimg": 0.016, "batch": 4, "cbase": 64, "cmax": 8, "z_dim": 8, "map_depth": 2}
TINY_OPTIONS = arguments({**TINY, "workers": 0})  # of train.py


def tiny_config(dataset: SliceDataset, cfg: str = "auto", **changes) -> TrainingConfig:
    """Configuration of four steps of four slices. changes: values of the recipe."""
    data = DataConfig(str(dataset.archive.path), cond=dataset.c_dim > 0, workers=0)
    recipe = replace(find_recipe(cfg, dataset.resolution), **{**TINY, **changes})
    return resolve(recipe, data, dataset.schema, dataset.resolution, dataset.c_dim, snap=0)


def tiny_trainer(tmp_path: Path, data: Path, cfg: str = "auto", cond: bool = False, **changes) -> Trainer:
    """A trainer before its first step, on the CPU."""
    dataset = SliceDataset(data, use_labels=cond)
    config, device = tiny_config(dataset, cfg, **changes), torch.device("cpu")
    state = TrainingState.initial(config, device)
    return Trainer(config, state, MinibatchSource(config, dataset, device, Log(tmp_path / "log.txt")), Statistics())


def tiny_training(tmp_path: Path, data: Path, **changes) -> Outcome:
    """Do a whole run of four steps, or as `changes` of the recipe say."""
    dataset, folder = SliceDataset(data), tmp_path / "run"
    folder.mkdir()
    return train(tiny_config(dataset, **changes), dataset, folder, Log(folder / "log.txt"))

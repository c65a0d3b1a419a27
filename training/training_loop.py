"""The training loop: turns a configuration into a run folder with snapshots."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dnnlib.files import sha256
from dnnlib.runs import Log
from slices.dataset import SliceDataset
from torch_utils.distributed import default_device
from torch_utils.ops import native
from training.config import TrainingConfig
from training.minibatches import MinibatchSource
from training.reporter import Reporter, sheet_size
from training.snapshot import SnapshotInfo, save_snapshot, snapshot_name
from training.state import TrainingState
from training.training_step import Trainer


@dataclass(frozen=True)
class Outcome:
    """Result of a run."""

    snapshot: Path  # the last one
    kimg: float  # real images shown, in thousands
    interrupted: bool  # by Ctrl-C


def train(config: TrainingConfig, dataset: SliceDataset, folder: Path, log: Log) -> Outcome:
    """Train until the configured length or until Ctrl-C, and save a last snapshot in both cases."""
    device = default_device()
    native.available(device.type)  # may build the operators for a minute: better before the clock starts
    info = describe_training(config, dataset)
    state = TrainingState.initial(config, device)
    source = MinibatchSource(config, dataset, device, log)
    reporter = Reporter(config, dataset, folder, log, source.draw_latents(sheet_size(dataset.resolution)))
    trainer = Trainer(config, state, source, reporter.statistics)

    # Ctrl-C is caught for the whole loop: a step is finished, and a snapshot saved, before the run ends.
    with _ctrl_c_sets_flag(log) as interrupted, reporter.progress_bar() as bar:
        reporter.start(state)
        while True:
            trainer.step()
            bar.update(config.batch / 1000)
            done = state.nimg >= config.kimg * 1000 or interrupted()
            if not done and not tick_is_over(config, state):
                continue
            reporter.tick(state)
            if done or snapshot_is_due(config, state):
                reporter.save_fakes(f"fakes{int(state.nimg / 1000):06d}.png", state)
                snapshot = save(state, info, folder)
            if done:
                break
            state.tick, state.tick_nimg = state.tick + 1, state.nimg
            reporter.start_tick()
    return Outcome(snapshot, state.nimg / 1000, interrupted())


def tick_is_over(config: TrainingConfig, state: TrainingState) -> bool:
    """Return whether a tick ends here. The first tick is a single step: it shows the user the speed at once."""
    return state.tick == 0 or state.nimg >= state.tick_nimg + config.kimg_per_tick * 1000


def snapshot_is_due(config: TrainingConfig, state: TrainingState) -> bool:
    """Return whether to save a snapshot after this tick: every `snap` ticks, but not after the first (one step)."""
    return config.snap > 0 and state.tick > 0 and state.tick % config.snap == 0


def save(state: TrainingState, info: SnapshotInfo, folder: Path) -> Path:
    """Save the networks in their present state. Returns the snapshot's path."""
    kimg = state.nimg / 1000
    path = folder / snapshot_name(kimg)
    save_snapshot(path, state.networks, replace(info, kimg=kimg))
    return path


def describe_training(config: TrainingConfig, dataset: SliceDataset) -> SnapshotInfo:
    """Collect the metadata that all snapshots of a run share. kimg is 0, and replaced by `save`."""
    archive = dataset.archive
    return SnapshotInfo(
        schema=dataset.schema,
        generator=config.generator,
        discriminator=config.discriminator,
        kimg=0,
        patients=dataset.patients,
        training=replace(config, data=replace(config.data, path=archive.path.name)),
        data_sha256=sha256(archive.path),
        label_names=archive.info.label_names if config.data.cond else None,
        label_counts=dataset.label_counts,
        pixel=archive.info.pixels,
    )


@contextlib.contextmanager
def _ctrl_c_sets_flag(log: Log) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C in the block into a flag, so that the loop can finish its step. The second stops at once.

    Yields a function that returns whether Ctrl-C was pressed.
    """
    asked: list[bool] = []  # filled by the handler, which can't return anything

    def ask(signum, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(True)
        log("Stopping after this step, to save a snapshot; press Ctrl-C again to stop without one")

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, previous)

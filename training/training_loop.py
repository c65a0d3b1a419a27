"""The training loop: turns a configuration into a run folder with snapshots."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import replace
from pathlib import Path

import torch

from dnnlib.config import from_json
from dnnlib.runs import Log
from slices.dataset import SliceDataset
from torch_utils.distributed import World
from torch_utils.ops import native
from torch_utils.stopping import STOP_SIGNALS, stop_signals
from training.config import TrainingConfig
from training.measures import Measures
from training.minibatches import FakeSource, RealSource
from training.reporter import Reporter, sheet_size
from training.resuming import KnownPatients
from training.run import Evaluate, Outcome, Run
from training.saving import StateSaver
from training.shared_memory import share_slices
from training.snapshot import SnapshotInfo, save_snapshot, snapshot_name
from training.state import Position, TrainingState
from training.training_step import Trainer
from training.transfer import copy_weights

_NAMES = {"SIGINT": "Ctrl-C"}  # of signals, as users know them


def train(run: Run, dataset: SliceDataset, world: World, log: Log, evaluate: Evaluate | None = None) -> Outcome:
    """Train until the configured length, or until a signal asks to stop. The state is saved in both cases.

    All processes of the world call this together, with equal arguments. Only the first one writes.
    """
    config = run.config
    native.available(world.device.type)  # may build the operators for a minute: better before the clock starts
    if remark := share_slices(dataset, world):
        log(remark)
    state = begin(run, world.device)
    fakes = FakeSource(config, dataset, state.generator)
    inputs = fakes.draw(0, "sheet", range(sheet_size(dataset.resolution)))
    reporter = Reporter(config, dataset, run.folder, log, world, inputs, state)
    reals = RealSource(config, dataset, world, log, state.step)
    trainer = Trainer(config, state, reals, fakes, world, run.max_bad_steps)
    measures = Measures(run.folder, evaluate, world, log, run.best)
    info = describe_training(config, dataset, run.data_sha256, run.known)

    def snapshot() -> Path | None:
        reporter.save_fakes(f"fakes{int(state.nimg / 1000):06d}.png")
        return save(state, info, run.folder) if world.first else None

    def end_tick() -> None:
        reporter.tick(trainer.stopwatch)
        if snapshot_is_due(config, state):
            path = None
            with reporter.maintenance():
                with log.warning("a snapshot"):
                    path = snapshot()
                reporter.measures(measures.take(state, path))
                world.meet()  # without the time limit that the next reduction has
        state.tick, state.tick_nimg = state.tick + 1, state.nimg

    with (
        stop_signals(lambda name: log(f"{_NAMES.get(name, name)}: saving the state after this step")) as signals,
        StateSaver(run, state, world, log, reporter) as saver,
        contextlib.closing(reporter),
        reporter.progress_bar() as bar,
    ):
        reporter.start(run.saved)
        stopped_by = 0
        while not is_finished(config, state) and not stopped_by:
            if tick_is_over(config, state):
                end_tick()
            # Asked near the end of the step, in all processes; so they leave after the same step.
            asked = trainer.step(lambda: [saver.due(), *(signals.asked == number for number in STOP_SIGNALS)])
            bar.update(config.batch / 1000)
            stopped_by = next((number for number, count in zip(STOP_SIGNALS, asked[1:], strict=True) if count), 0)
            if asked[0] and not stopped_by:
                saver.save()
        # Before the last tick is closed: if the run is made longer one day, it then has the ticks of one long run.
        saver.save(last=True)
        last = None
        if not stopped_by:
            reporter.tick(trainer.stopwatch)
            last = snapshot()
            reporter.measures(measures.take(state, last))
        elif stopped_by == signal.SIGINT:
            last = snapshot()
    return Outcome(last, state.nimg / 1000, stopped_by)


def begin(run: Run, device: torch.device) -> TrainingState:
    """Return the state from which a run continues, or that of a new one."""
    state = TrainingState.initial(run.config, device)
    if run.saved is not None:
        position = from_json(Position, run.saved.metadata["position"], str(run.saved.path))
        state.load(run.saved.tensors, position)
        # They are mapped from the file, and would keep its memory, and its room on the disk after its deletion.
        run.saved.tensors.clear()
    elif run.source is not None:
        copy_weights(state, run.source)
    return state


def is_finished(config: TrainingConfig, state: TrainingState) -> bool:
    """Return whether all images have been shown."""
    return state.nimg >= config.kimg * 1000


def tick_is_over(config: TrainingConfig, state: TrainingState) -> bool:
    """Return whether a tick ends here. The first tick is a single step: it shows the user the speed at once."""
    if state.nimg == state.tick_nimg:
        return False
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


def describe_training(
    config: TrainingConfig, dataset: SliceDataset, data_sha256: str, known: KnownPatients | None = None
) -> SnapshotInfo:
    """Collect the metadata that all snapshots of a run share. kimg is 0, and replaced by `save`.

    known: patients behind the weights with which the run began.
    """
    archive, known = dataset.archive, known or KnownPatients(())
    return SnapshotInfo(
        schema=dataset.schema,
        generator=config.generator,
        discriminator=config.discriminator,
        kimg=0,
        patients=tuple(sorted({*dataset.patients, *known.names})),
        more_patients=known.more,
        training=replace(config, data=replace(config.data, path=archive.path.name)),
        data_sha256=data_sha256,
        label_names=archive.info.label_names if config.data.cond else None,
        label_counts=dataset.label_counts,
        pixel=archive.info.pixels,
    )

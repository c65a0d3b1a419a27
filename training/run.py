"""A run: what a training does, where, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from training.config import TrainingConfig
from training.networks.generator import Generator
from training.resuming import KnownPatients
from training.source import Source
from training.state_file import LoadedState

# Measures the averaged generator at a snapshot, after this many kimg: name of a measure -> value. It is called in all
# processes at the same time, and may take as long as it likes; the first process's values count.
Evaluate = Callable[[Generator, float], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training does, and where."""

    config: TrainingConfig
    folder: Path  # exists, and belongs to this run
    data_sha256: str  # SHA-256 of the archive
    saved: LoadedState | None = None  # continue from here; `train` takes its tensors over, and clears them
    source: Source | None = None  # begin with its weights, unless there is a state; likewise
    known: KnownPatients | None = None  # patients behind the weights with which the run began
    state_minutes: float = 10  # from one state to the next
    max_bad_steps: int = 50  # applications of a phase in a row without finite gradients that end the run
    best: str | None = None  # measure by which the best snapshot is kept: its name, or name:max if more is better


@dataclass(frozen=True)
class Outcome:
    """Result of a run."""

    snapshot: Path | None  # the last one; None if a signal other than Ctrl-C came, and in all processes but the first
    kimg: float  # real images shown, in thousands
    stopped_by: int  # number of the signal; 0: the run is finished

"""States of a run: when they are saved, and what they hold."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from dnnlib.config import to_json
from dnnlib.errors import Failure
from dnnlib.runs import Log
from torch_utils.checkpoint import checksum
from torch_utils.distributed import World
from training.reporter import Reporter
from training.run import Run
from training.state import TrainingState
from training.state_file import StateWriter, log_lengths


class RanksDiffer(Failure):
    """Processes of a run that should have equal states have not."""


class StateSaver:
    """Saves states of a training in its run folder, while it goes on. Waits for the last one at the end."""

    def __init__(self, run: Run, state: TrainingState, world: World, log: Log, reporter: Reporter) -> None:
        """reporter: its clock tells the seconds of training so far, and counts those of saving."""
        self.run, self.state, self.world, self.reporter = run, state, world, reporter
        resumed = run.saved.path if run.saved is not None else None
        self._writer = StateWriter(run.folder, log, resumed) if world.first else None
        # The first state comes after the first step: it shows at once whether the disk takes it.
        self._last_time = -float("inf")
        self._last_step = state.step

    def due(self) -> bool:
        """Whether the time for the next state has come. The first process decides."""
        return self.world.first and time.monotonic() - self._last_time >= 60 * self.run.state_minutes

    def save(self, last: bool = False) -> None:
        """Save the state in its present form, unless it is saved already. All processes call this together.

        last: wait until it is written. Raises UserError that says what to free, if it could not be.
        Raises RanksDiffer with the names of tensors that are not the same in all processes.
        """
        with self.reporter.maintenance():
            if self.state.step != self._last_step:
                self._require_equal_states()
                if self._writer is not None:
                    self.state.seconds = self.reporter.seconds()
                    self._writer.save(self.state.step, self.state.tensors(), self._metadata(), last)
            if last and self._writer is not None:
                self._writer.finish()
            # The first process may have to wait for the disk. In a reduction, the others would wait only so long.
            self.world.meet()
        self._last_time, self._last_step = time.monotonic(), self.state.step

    def _metadata(self) -> dict[str, Any]:
        # Otherwise a resume would cut off lines that belong to the time before the state.
        self.reporter.flush()
        return {
            "position": to_json(self.state.position),
            "config": to_json(self.run.config),
            "data_sha256": self.run.data_sha256,
            "lengths": log_lengths(self.run.folder),
        }

    def _require_equal_states(self) -> None:
        if self.world.size == 1:
            return
        hashes = {name: checksum(tensor) for name, tensor in self.state.tensors().items()}
        if differing := self.world.differing(hashes):
            raise RanksDiffer(
                f"the processes have different values of {', '.join(differing[:3])} after step {self.state.step}; the "
                "state was not saved. A device may be faulty: continue from the last state on other devices"
            )

    def __enter__(self) -> StateSaver:
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Wait for the last state. Raises UserError that says what to free, if it could not be written."""
        # Not at a second Ctrl-C, which stops at once.
        if self._writer is not None and (error is None or isinstance(error, Exception)):
            # An error that ends the run is told, not one of a state that could not be written meanwhile.
            with contextlib.suppress(Exception) if error else contextlib.nullcontext():
                self._writer.finish()

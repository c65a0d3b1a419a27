"""Curves of a run for TensorBoard, if its package is installed; otherwise nothing is written, and nothing said."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch_utils.stats import Moments


class TensorBoard:
    """Writes event files into a run folder. Their steps are real images shown. One process of a run has one."""

    def __init__(self, folder: Path, nimg: int = 0) -> None:
        """nimg: where the run begins or continues. TensorBoard hides what earlier processes wrote from there on."""
        self._folder = str(folder)
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._make = None
        else:
            self._make = SummaryWriter
            # A state is written before the tick that ends with its step.
            self._begin_file(nimg)

    def tick(self, stats: Mapping[str, Moments], nimg: int) -> None:
        """Write the means of a tick's statistics under their names in stats.jsonl."""
        self._write({name: moments.mean for name, moments in stats.items()}, nimg)

    def measures(self, values: Mapping[str, float], nimg: int) -> None:
        """Write what the evaluation of a snapshot measured, as Metrics/<name>."""
        self._write({f"Metrics/{name}": value for name, value in values.items()}, nimg)

    def _write(self, values: Mapping[str, float], nimg: int) -> None:
        """Write values to the disk at once: a killed process must not take ticks along that its state counts."""
        if self._writer is None:
            self._begin_file(nimg)
        if self._writer is not None:
            try:
                for name, value in values.items():
                    self._writer.add_scalar(name, value, nimg)
                self._writer.flush()
            except OSError:
                # A full disk ends the writer's thread. These values are lost to the curves; stats.jsonl has them.
                self._writer = None

    def _begin_file(self, nimg: int) -> None:
        """Begin an event file, if the disk has room."""
        if self._make is not None:
            with contextlib.suppress(OSError):
                self._writer = self._make(self._folder, purge_step=nimg)

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()

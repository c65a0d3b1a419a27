"""Curves of a run for TensorBoard, if its package is installed; otherwise nothing is written, and nothing said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch_utils.stats import Moments


class TensorBoard:
    """Writes event files into a run folder. Their steps are real images shown. One process of a run has one."""

    def __init__(self, folder: Path, nimg: int = 0) -> None:
        """nimg: where the run begins or continues. TensorBoard hides what earlier processes wrote from there on."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._writer = None
        else:
            # A state is written before the tick that ends with its step.
            self._writer = SummaryWriter(str(folder), purge_step=nimg)

    def tick(self, stats: Mapping[str, Moments], nimg: int) -> None:
        """Write the means of a tick's statistics under their names in stats.jsonl."""
        self._write({name: moments.mean for name, moments in stats.items()}, nimg)

    def measures(self, values: Mapping[str, float], nimg: int) -> None:
        """Write what the evaluation of a snapshot measured, as Metrics/<name>."""
        self._write({f"Metrics/{name}": value for name, value in values.items()}, nimg)

    def _write(self, values: Mapping[str, float], nimg: int) -> None:
        """Write values to the disk at once: a killed process must not take ticks along that its state counts."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, nimg)
            self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()

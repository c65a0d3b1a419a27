"""Measures of the averaged generator at snapshots: metric-<name>.jsonl, and the best snapshot."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from pathlib import Path

from dnnlib.files import atomic_path
from dnnlib.runs import Log
from torch_utils.distributed import World
from training.run import Evaluate
from training.state import TrainingState


class Measures:
    """Calls an evaluation at snapshots, and keeps its values."""

    def __init__(
        self,
        folder: Path,
        evaluate: Evaluate | None,  # None: nothing is measured
        world: World,
        log: Log,
        best: str | None = None,  # name of a measure, or name:max where more is better
    ) -> None:
        self.folder, self.evaluate, self.world, self.log = folder, evaluate, world, log
        self.best, _, direction = (best or "").partition(":")
        self.sign = -1 if direction == "max" else 1

    def take(self, state: TrainingState, snapshot: Path | None) -> dict[str, float]:
        """Measure the averaged generator, and wait for all processes. Returns the values of the first process.

        snapshot: file of the same networks, in the first process; None if it could not be written.
        """
        if self.evaluate is None:
            return {}
        values = self.world.share({name: float(v) for name, v in self.evaluate(state.ema, state.nimg / 1000).items()})
        if self.world.first:
            with self.log.warning("a measure"):
                for name, value in values.items():
                    self._keep(name, value, state.nimg / 1000, snapshot)
        return values

    def _keep(self, name: str, value: float, kimg: float, snapshot: Path | None) -> None:
        """Append a value to the file of its measure, and copy the snapshot if it is the best so far."""
        path = self.folder / f"metric-{name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        known = [json.loads(line)["value"] for line in lines]
        # JSON has no word for values that are not finite.
        told = value if math.isfinite(value) else None
        _append_line(path, json.dumps({"kimg": kimg, "value": told, "snapshot": snapshot and snapshot.name}))
        if not snapshot or name != self.best or told is None:
            return
        if all(self.sign * told < self.sign * other for other in known if other is not None):
            with atomic_path(self.folder / f"best-{name}.safetensors") as place:
                shutil.copyfile(snapshot, place)


def _append_line(path: Path, line: str) -> None:
    """Append a line to a file: all of it or, on a full disk, nothing. Raises OSError then."""
    content = f"{line}\n".encode()
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        if file.write(content) < len(content):
            file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

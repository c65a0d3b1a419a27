"""train.py with a fault at a chosen place, and in float64 if asked.

Both are told by environment variables, so that ranks which a launcher starts have them too.

FAULT is JSON with the arguments of Fault. FLOAT64=1 makes networks and data of float64. MEASURING=8 measures at
snapshots, for 8 s in rank 0 and no time in the others, while processes wait for each other in a reduction for 6 s.
"""

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

PLACES = ("step", "state", "writing a state", "renaming a state", "deleting a state", "writing a snapshot", "stats")


def fail(how: str) -> None:
    """Do what a fault does."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "raise":
        raise RuntimeError("a fault of the test")
    elif how == "memory":
        torch.empty(1 << 55)
    elif how == "other weights":
        from training.state import TrainingState

        tensors = TrainingState.tensors

        def other(self: TrainingState) -> dict[str, torch.Tensor]:
            return {name: t + 1 if name == "D.b4.out.bias" else t for name, t in tensors(self).items()}

        TrainingState.tensors = other  # type: ignore[method-assign]
    elif how == "sleep":
        time.sleep(60)


class Fault:
    """A fault that waits at its place."""

    def __init__(self, place: str, number: int, how: str, rank: int = 0) -> None:
        """number: the fault comes at this visit of the place in a process, counted from 1. how: see `fail`."""
        assert place in PLACES, place
        self.place, self.number, self.how, self.rank = place, number, how, rank
        self.visits = 0

    def visit(self, place: str) -> bool:
        """Return whether the fault comes now."""
        if place == self.place and int(os.environ.get("RANK", 0)) == self.rank:
            self.visits += 1
            return self.visits == self.number
        return False

    def before(self, owner: Any, name: str, place: str, applies: Callable[..., bool] = lambda *_: True) -> None:
        """Put the fault before a function of a module or class."""
        function = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            if applies(*arguments) and self.visit(place):
                fail(self.how)
            return function(*arguments, **options)

        setattr(owner, name, wrapped)

    def set_up(self) -> None:
        """Put the fault at its place."""
        from dnnlib import publish
        from torch_utils import checkpoint
        from training import reporter
        from training.state_file import StateWriter
        from training.training_step import Trainer

        self.before(Trainer, "step", "step")
        self.before(StateWriter, "save", "state")
        self.before(StateWriter, "_delete_old", "deleting a state")
        self.before(publish, "_appear", "renaming a state", lambda made, final, *_: "training-state" in final.name)
        write, tick = checkpoint._write, reporter.Reporter.tick

        def half_written(file: Any, tensors: Any, document: str) -> None:
            if self.visit("writing a state" if '"training state"' in document else "writing a snapshot"):
                file.write(b"half of it")
                file.flush()
                fail(self.how)
            write(file, tensors, document)

        def half_a_line(own: reporter.Reporter, stopwatch: Any) -> None:
            if self.visit("stats"):
                with open(own.folder / "stats.jsonl", "a", encoding="utf-8") as file:
                    file.write('{"Loss/G/loss": {"num"')
                fail(self.how)
            tick(own, stopwatch)

        checkpoint._write = half_written  # type: ignore[assignment]
        reporter.Reporter.tick = half_a_line  # type: ignore[method-assign]


def measure_slowly(seconds: float) -> None:
    """Give the training a hook that takes long in rank 0, and the group a short time limit."""
    from torch_utils import distributed
    from training import training_loop

    def evaluate(generator: Any, kimg: float) -> dict[str, float]:
        time.sleep(seconds if int(os.environ.get("RANK", 0)) == 0 else 0)
        return {"dummy": kimg}

    distributed.joined = functools.partial(distributed.joined, timeout_minutes=0.1)  # type: ignore[assignment]
    training_loop.train = functools.partial(training_loop.train, evaluate=evaluate)  # type: ignore[assignment]


if __name__ == "__main__":
    # A shell that runs the tests in the background lets them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if seconds := os.environ.get("MEASURING"):
        measure_slowly(float(seconds))
    if os.environ.get("FLOAT64"):
        torch.set_default_dtype(torch.float64)
    if told := os.environ.get("FAULT"):
        Fault(**json.loads(told)).set_up()

    from dnnlib.system import run
    from train import main

    run(main)

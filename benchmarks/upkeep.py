"""What a training does besides computing: saving its state, waiting for data, making a GPU wait."""

from __future__ import annotations

import collections
import tempfile
import warnings
from pathlib import Path
from statistics import median

import torch

from benchmarks.setups import PAPER, PERIOD, SETUPS, Cost, Costs, Setup, configure, make_trainer, medians
from dnnlib.config import to_json
from dnnlib.text import format_table
from torch_utils.checkpoint import checksum
from torch_utils.distributed import World
from torch_utils.memory import keep_freed_memory
from training.state import TrainingState
from training.state_file import StateWriter

BETWEEN = 600  # seconds from one state to the next, by default
AHEAD = 8  # minibatches: workers read fewer ahead


# --- states -----------------------------------------------------------------------------------------------------------


def time_states(repeats: int) -> str:
    """Save states. A training stands still while its state is copied, and not while the copy is written."""
    rows = []
    for setup in (SETUPS["64"], PAPER):
        state = state_with_moments(setup)
        tensors, costs = state.tensors(), Costs()
        with tempfile.TemporaryDirectory() as folder:
            writer = StateWriter(Path(folder), print)
            for step in range(repeats + 1):
                with costs.note("copy"):
                    writer.save(step, tensors, {"position": to_json(state.position)})
                with costs.note("write"):
                    writer.finish()
                with costs.note("checksums"):
                    for tensor in tensors.values():
                        checksum(tensor)
        size = sum(tensor.nbytes for tensor in tensors.values()) / 1e9
        first = costs.noted["copy"].pop(0).seconds  # it also takes the memory of the copy
        copy, write, checksums = (medians(costs.noted[name]) for name in ("copy", "write", "checksums"))
        still = copy.seconds + checksums.seconds
        rows.append([setup.describe().split(",")[0], f"{size:.3f}", f"{first:.3f}", f"{copy.seconds:.3f}"])
        rows[-1] += [f"{copy.seconds / BETWEEN:.3%}", f"{checksums.seconds:.3f}", f"{still / BETWEEN:.3%}"]
        rows[-1] += [f"{write.seconds:.2f}", f"{write.cpu:.2f}"]
    columns = ["state", "GB", "first, s", "stands still, s", "share", "ranks' checksums, s", "share", "writing, s"]
    return format_table([*columns, "CPU s"], rows) + "\nshares of 10 minutes (aim: at most 1 %)"


def state_with_moments(setup: Setup) -> TrainingState:
    """A state as it is after the first step."""
    state = TrainingState.initial(configure(setup), World().device)
    for network, optimizer in ((state.generator, state.g_optimizer), (state.discriminator, state.d_optimizer)):
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return state


# --- data -------------------------------------------------------------------------------------------------------------


def time_data(periods: int) -> str:
    """Train on slices in memory, and on slices that worker processes read, in turn."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            kind: make_trainer(SETUPS["64"], Path(folder), World(), memory)
            for kind, memory in (("in memory", None), ("read by two workers", 0))
        }
        wholes: dict[str, list[Cost]] = {kind: [] for kind in trainers}
        waits: dict[str, list[float]] = {kind: [] for kind in trainers}
        for _ in range(periods):
            for kind, trainer in trainers.items():
                for _ in range(AHEAD):
                    trainer.reals.next_parts()  # what was read while the other one trained
                trainer.costs.noted.clear()
                wholes[kind].append(trainer.train_period())
                waits[kind].append(sum(cost.seconds for cost in trainer.costs.noted["data"]) / trainer.kimg_of_period)
    rows = []
    for kind in trainers:
        whole, waited = medians(wholes[kind]).seconds, median(waits[kind])
        rows.append([kind, f"{whole:.2f}", f"{waited:.3f}", f"{waited / whole:.2%}"])
    return format_table(["slices", "s per kimg", "waiting, s per kimg", "share (aim: at most 2 %)"], rows)


# --- synchronizations -------------------------------------------------------------------------------------------------


def count_synchronizations() -> str:
    """Count how often a step waits for the GPU, and where."""
    if not torch.cuda.is_available():
        return "there is no GPU"
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(SETUPS["64"], Path(folder), World())
        trainer.state.step = 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                for _ in range(PERIOD):
                    trainer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "synchroniz" in str(warning.message)]
    places = collections.Counter(f"{Path(warning.filename).name}:{warning.lineno}" for warning in found)
    told = "".join(f"\n  {place}: {number / PERIOD:g}" for place, number in places.most_common())
    return f"{len(found) / PERIOD:g} a step (aim: at most 1){told}"

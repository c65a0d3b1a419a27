"""Runs of train.py as a user starts them, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from helpers.commands import ROOT
from helpers.trainings import TINY_OPTIONS
from training.state_file import LoadedState, newest_state

PROGRAM = ROOT / "tests" / "helpers" / "train_faulty.py"


def start(
    *options: Any, fault: dict[str, Any] | None = None, double: bool = False, measuring: float = 0, **popen: Any
) -> subprocess.Popen:
    """Start train.py, by default with options of a tiny network, which later ones replace; see train_faulty.py."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if fault is not None:
        environment["FAULT"] = json.dumps(fault)
    if double:
        environment["FLOAT64"] = "1"
    if measuring:
        environment["MEASURING"] = str(measuring)
    resumed = any(str(option).startswith("--resume") for option in options)  # has its own options
    command = [sys.executable, str(PROGRAM), *(() if resumed else TINY_OPTIONS), *map(str, options)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **popen)


def go(*options: Any, expected: int = 0, **more: Any) -> str:
    """Run train.py to its end, check its exit status, and return what it printed. No process of it may be left."""
    process = start(*options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == expected, f"exit status {process.returncode}, expected {expected}:\n{output}"
    return output


def left_over(folder: Path) -> list[psutil.Process]:
    """Processes whose command line names a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        named = any(str(folder) in word for word in process.info["cmdline"] or ())
        if named and process.pid != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def state_of(folder: Path) -> LoadedState:
    """Newest state of a run folder."""
    state = newest_state(folder)
    assert state is not None
    return state


def relative_difference(found: LoadedState, wanted: LoadedState) -> float:
    """Largest difference of an element of a tensor, relative to the tensor's largest element."""
    assert found.tensors.keys() == wanted.tensors.keys()
    differences = [0.0]
    for name, tensor in wanted.tensors.items():
        scale = tensor.abs().max().clamp(min=1e-30)
        differences.append(float((found.tensors[name].double() - tensor.double()).abs().max() / scale))
    return max(differences)


def stats_of(folder: Path) -> list[dict[str, Any]]:
    """Lines of stats.jsonl without times and memory."""
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    kept = ("Loss/", "Progress/kimg", "Progress/tick", "Health/")
    return [{name: value for name, value in line.items() if name.startswith(kept)} for line in lines]


def equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    """Return whether tensors are the same to the bit."""
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)

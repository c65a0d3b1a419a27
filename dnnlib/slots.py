"""Slots: how many jobs run at once, and on what: GPUs or cores of this machine, or what a launcher such as srun finds.

Imports no torch, so GPUs are counted from CUDA_VISIBLE_DEVICES, or else by `nvidia-smi -L`, which also knows what a
container or a job scheduler allows.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dnnlib.cli import Checked, option
from dnnlib.errors import UserError
from dnnlib.processes import default_workers
from dnnlib.text import count

LAUNCHED = 100  # jobs handed to a launcher at once, unless the user says otherwise; a cluster's queue holds them


@dataclass(frozen=True)
class Slots:
    """Room for jobs. Without GPUs, a job computes on one thread, so that its result does not depend on the slots."""

    number: int  # jobs at once
    gpus: tuple[str, ...] = ()  # ids in the manner of CUDA_VISIBLE_DEVICES; slot i has the i-th, in turns if too few
    launcher: tuple[str, ...] = ()  # words before each command; the launcher finds the room

    def environment(self, slot: int, alone: bool) -> dict[str, str]:
        """Return the environment variables of a job in a slot. A job that runs alone has all GPUs, or all threads."""
        if self.launcher or alone:
            return {}
        if self.gpus:
            return {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]}
        return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": "1"}

    def place(self, slot: int, alone: bool) -> str:
        """Say where a job of this slot runs, for a line on the terminal."""
        gpu = self.environment(slot, alone).get("CUDA_VISIBLE_DEVICES")
        return f"GPU {gpu}" if gpu is not None else ""

    def __str__(self) -> str:
        return count(self.number, "slot")


def find_slots(jobs: int | None = None, launcher: str = "") -> Slots:
    """Return the slots of this machine, or of a launcher.

    jobs: number of jobs at once; by default, one for each GPU, without GPUs one for each CPU that this process may use,
        at most 8, and LAUNCHED with a launcher. More jobs than GPUs share these.
    launcher: a command as in a shell, such as "srun --gres=gpu:1 -n1". It is put before that of each job.
    Raises UserError if the launcher's program is not there.
    """
    try:
        words = tuple(shlex.split(launcher))
    except ValueError as error:
        raise UserError(f"--launcher: {launcher} is no command ({error})") from None
    if words:
        if shutil.which(words[0]) is None:
            raise UserError(f"--launcher: there is no program {words[0]}; expected a command such as 'srun -n1'")
        return Slots(jobs or LAUNCHED, launcher=words)
    gpus = gpu_ids(os.environ)
    return Slots(jobs or len(gpus) or default_workers(), gpus)


def gpu_ids(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the ids of the GPUs that programs with these environment variables may use."""
    told = environment.get("CUDA_VISIBLE_DEVICES")
    if told is None:
        return tuple(str(n) for n in range(_count_gpus()))
    ids: list[str] = []
    for word in map(str.strip, told.split(",")):
        if not word or word.startswith("-"):  # CUDA ignores what follows an id that is none
            break
        ids.append(word)
    return tuple(ids)


def _count_gpus() -> int:
    """Count NVIDIA's GPUs as its own program lists them, one a line. 0 if there is no such program, or no answer."""
    command: Sequence[str] = ("nvidia-smi", "-L")
    try:
        listed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


@dataclass(frozen=True, kw_only=True)
class RunJobs(Checked):
    """How the jobs of a graph are run."""

    jobs: int | None = option(
        "Jobs that run at a time.",
        default=None,
        least=1,
        shown="the number of GPUs, without GPU that of cores, at most 8; with --launcher 100",
    )
    launcher: str | None = option(
        'Command that starts each job, such as "srun --gres=gpu:1 -n1": Slurm then queues and places it.',
        default=None,
        metavar="COMMAND",
    )
    dry_run: bool = option("Show the jobs and how long they may take, and stop.", switch=True)

    @property
    def slots(self) -> Slots:
        """Room for jobs on this machine, or on those that the launcher finds."""
        return find_slots(self.jobs, self.launcher or "")

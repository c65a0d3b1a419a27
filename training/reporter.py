"""Output of a training run: description, status lines, stats.jsonl, sheets of slices, progress bar."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import psutil
import torch
import tqdm
from torch import nn

from dnnlib.runs import Log
from dnnlib.text import count, format_time
from slices import render
from slices.codec import SliceCodec
from slices.dataset import SliceDataset
from torch_utils.ops import native
from torch_utils.stats import Moments, Statistics
from training.config import TrainingConfig
from training.minibatches import Latents
from training.state import TrainingState

_NON_FINITE = "Health/non_finite_gradients/"


class Reporter:
    """Writes the log, stats.jsonl and sheets of a run. Loss and trainer report their values to `statistics`."""

    def __init__(self, config: TrainingConfig, dataset: SliceDataset, folder: Path, log: Log, latents: Latents) -> None:
        """latents: generator inputs that all sheets of fakes share, so that sheets can be compared."""
        self.config, self.dataset, self.folder, self.log, self.latents = config, dataset, folder, log, latents
        self.statistics = Statistics()
        self._start = self._tick_start = self._tick_end = time.time()

    # ---- Start -----------------------------------------------------------------------------------------------

    def start(self, state: TrainingState) -> None:
        """Describe the run, save the first sheets, and start the clock."""
        self.describe(state)
        self.save_reals()
        self.save_fakes("fakesinit.png", state)
        self._start = self._tick_start = self._tick_end = time.time()

    def describe(self, state: TrainingState) -> None:
        """Describe data, networks and machine in the log."""
        dataset, config, device = self.dataset, self.config, state.device
        mirrored = f", {len(dataset)} with their mirrored copies" if config.data.mirror else ""
        operators = native.available(device.type)
        self.log(f"Data       {dataset.archive.path}: {count(dataset.num_originals, 'slice')}{mirrored}")
        self.log(f"Channels   {dataset.schema.describe()}, {dataset.resolution}×{dataset.resolution}")
        self.log(f"Generator  {_parameters(state.generator)}")
        self.log(f"Discrim.   {_parameters(state.discriminator)}")
        self.log(f"Device     {device}, {count(torch.get_num_threads(), 'thread')}")
        self.log(f"Operators  {'native' if operators else 'plain PyTorch; for the reason: python -m torch_utils.ops'}")
        self.log(f"Output     {self.folder}")
        self.log(f"Training for {config.kimg:g} kimg; Ctrl-C stops after saving a snapshot")
        self.log()

    # ---- Progress --------------------------------------------------------------------------------------------

    def progress_bar(self) -> tqdm.tqdm:
        """Return a progress bar in kimg, which stays below the log."""
        return tqdm.tqdm(
            total=self.config.kimg,
            unit="kimg",
            leave=False,
            disable=None,  # tqdm's word for: no bar unless the output is a terminal
            bar_format="{percentage:3.0f}% |{bar}| {n:.2f}/{total:g} kimg, {remaining} left",
        )

    def tick(self, state: TrainingState) -> None:
        """Write the status line, warnings and statistics of the tick that just ended."""
        now = time.time()
        seconds, images = now - self._tick_start, state.nimg - state.tick_nimg
        cpu_memory, gpu_memory = memory_in_use(state.device)
        for name, value in {
            "Progress/tick": state.tick,
            "Progress/kimg": state.nimg / 1000,
            "Timing/total_sec": now - self._start,
            "Timing/sec_per_tick": seconds,
            "Timing/sec_per_kimg": seconds / images * 1000,
            "Timing/maintenance_sec": self._tick_start - self._tick_end,
            "Resources/cpu_mem_gb": cpu_memory,
            "Resources/peak_gpu_mem_gb": gpu_memory,
        }.items():
            self.statistics.report(name, value)
        self._tick_end = now
        stats = self.statistics.collect()
        self.log(status_line(stats))
        for warning in warnings(stats):
            self.log(warning)
        append_stats(self.folder / "stats.jsonl", stats)

    def start_tick(self) -> None:
        """Start the clock of the next tick. The time since the last tick's end counts as maintenance."""
        self._tick_start = time.time()

    # ---- Sheets of slices ------------------------------------------------------------------------------------

    def save_reals(self) -> None:
        """Save a sheet of real slices drawn at random, without mirrored copies."""
        # A generator of its own: the sheet must not change the random numbers of the training.
        order = np.random.RandomState(self.config.seed).permutation(self.dataset.num_originals)
        chosen = order[: sheet_size(self.dataset.resolution)]
        self._save_sheet("reals.png", np.stack([self.dataset[int(i)].stored.numpy() for i in chosen]))

    @torch.no_grad()
    def save_fakes(self, name: str, state: TrainingState) -> None:
        """Save a sheet of slices from the averaged generator."""
        # batch_gpu latents at a time, as in training: more might not fit into memory. One (z, c) pair per share.
        shares = zip(*(column.split(self.config.batch_gpu) for column in self.latents), strict=True)
        images = torch.cat([state.ema(z, c, noise_mode="const") for z, c in shares])  # [N, C + K, H, W]
        self._save_sheet(name, SliceCodec(self.dataset.schema).to_stored(images.cpu()).numpy())

    def _save_sheet(self, name: str, stored: np.ndarray) -> None:
        """Save stored slices, uint8 [N, C + K, H, W], as one picture."""
        render.save(render.sheet(stored, self.dataset.schema), self.folder / name)


def sheet_size(resolution: int) -> int:
    """Number of slices on a sheet, few enough to be legible."""
    return 12 if resolution >= 256 else 24


def status_line(stats: dict[str, Moments]) -> str:
    """Format the line of a tick, in the order that users of StyleGAN2-ADA know."""
    value = {name: moments.mean for name, moments in stats.items()}
    return "  ".join(
        [
            f"tick {value['Progress/tick']:<5.0f}",
            f"kimg {value['Progress/kimg']:<8.1f}",
            f"time {format_time(value['Timing/total_sec']):<12s}",
            f"sec/tick {value['Timing/sec_per_tick']:<7.1f}",
            f"sec/kimg {value['Timing/sec_per_kimg']:<7.2f}",
            f"maintenance {value['Timing/maintenance_sec']:<6.1f}",
            f"cpumem {value['Resources/cpu_mem_gb']:<6.2f}",
            f"gpumem {value['Resources/peak_gpu_mem_gb']:<6.2f}",
        ]
    ).rstrip()


def warnings(stats: dict[str, Moments]) -> list[str]:
    """Lines for the phases whose gradients were not all finite."""
    return [
        f"warning: {moments.mean * moments.num:.0f} gradients of {name.removeprefix(_NON_FINITE)} were not finite"
        for name, moments in stats.items()
        if name.startswith(_NON_FINITE) and moments.mean > 0
    ]


def memory_in_use(device: torch.device) -> tuple[float, float]:
    """Return the memory of this process, and the peak memory of its tensors on the GPU since the last call, in GiB."""
    gpu = 0.0
    if device.type == "cuda":
        gpu = torch.cuda.max_memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
    return psutil.Process(os.getpid()).memory_info().rss / 2**30, gpu


def append_stats(path: Path, stats: dict[str, Moments]) -> None:
    """Append one line of JSON: {name: {num, mean, std}, …, timestamp}."""
    line = {name: moments._asdict() for name, moments in stats.items()}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({**line, "timestamp": time.time()}) + "\n")


def _parameters(network: nn.Module) -> str:
    """Number of parameters in words."""
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} million parameters"

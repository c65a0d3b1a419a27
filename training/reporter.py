"""What a run shows of itself: status line, statistics file, pictures."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from dnnlib.text import format_time
from slices import render
from slices.codec import SliceCodec
from slices.dataset import SliceDataset
from slices.schema import Schema
from torch_utils.stats import Moments


def status_line(stats: dict[str, Moments]) -> str:
    """One line per tick, in the order that users of StyleGAN2-ADA know."""
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


def memory_in_use(device: torch.device) -> tuple[float, float]:
    """(resident memory of this process, peak memory on the GPU since the last call), in GiB."""
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


def grid_size(resolution: int) -> int:
    """How many slices make a legible sheet."""
    return 12 if resolution >= 256 else 24


def save_reals(path: Path, dataset: SliceDataset, seed: int) -> None:
    """A sheet of real slices, drawn at random, none of them mirrored."""
    chosen = np.random.RandomState(seed).permutation(dataset.num_originals)[: grid_size(dataset.resolution)]
    stored = np.stack([dataset[int(i)].stored.numpy() for i in chosen])
    render.save(render.sheet(stored, dataset.schema), path)


def save_images(path: Path, images: torch.Tensor, schema: Schema) -> None:
    """A sheet of generated slices; images: network values [N, C + K, H, W]."""
    stored = SliceCodec(schema).to_stored(images.cpu()).numpy()
    render.save(render.sheet(stored, schema), path)

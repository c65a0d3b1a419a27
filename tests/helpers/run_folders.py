"""Run folders as train.py leaves them, without any training."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.config import to_json
from slices import render
from slices.schema import BRATS
from training.config import AugmentConfig, Transferred

RESOLUTION = 8


def tick(kimg: float, values: Mapping[str, Sequence[float]], timestamp: float = 1.8e9) -> dict[str, Any]:
    """A line of stats.jsonl. values: statistic -> number and mean."""
    known = {"Progress/kimg": (1, kimg), **values}
    return {name: {"num": num, "mean": mean, "std": 0.5} for name, (num, mean) in known.items()} | {
        "timestamp": timestamp
    }


def draw_ticks(kimg: Sequence[float], seed: int = 0, **more: Callable[[float], float]) -> list[dict[str, Any]]:
    """Lines with values of chance. more: names of statistics, with _ for /, and their means as functions of kimg."""
    chance = random.Random(seed)
    lines = []
    for one in kimg:
        means = {
            "Loss/scores/real": chance.uniform(0, 2),
            "Loss/scores/fake": chance.uniform(-2, 0),
            "Loss/G/loss": chance.uniform(1, 2),
            "Loss/signs/real": chance.uniform(0.2, 0.6),
            "Loss/signs/fake": chance.uniform(-0.8, -0.5),
            "Timing/sec_per_kimg": chance.uniform(8, 9),
            "Timing/sec_per_tick": 35,
            "Timing/total_sec": 9 * one,
            **{name.replace("_", "/", 1): mean(one) for name, mean in more.items()},
        }
        values = {
            name: (1 if name.startswith(("Timing", "Progress")) else chance.randint(3, 4000), mean)
            for name, mean in means.items()
        }
        lines.append(tick(one, values))
    return lines


def write_run(
    folder: Path,
    lines: Sequence[Mapping[str, Any]],
    *,
    kimg: float = 40,
    seed: int = 0,
    sheets: Sequence[int] = (),
    measures: Mapping[str, Sequence[tuple[float, float | None]]] | None = None,
    augment: AugmentConfig | None = None,
    transfer: Transferred | None = None,
) -> Path:
    """Write a run folder. kimg: its length. sheets: kimg of its sheets. measures: name -> kimg and value."""
    folder.mkdir(parents=True)
    generator = {"resolution": RESOLUTION, "num_contrasts": 4, "num_maps": 4, "z_dim": 128}
    config = {"kimg": kimg, "batch": 8, "seed": seed, "generator": generator, "data": {"path": "few.zip"}}
    if augment is not None:
        config["augment"] = to_json(augment)
    if transfer is not None:
        config["transfer"] = to_json(transfer)
    request = {"options": {"cfg": "auto", "seed": seed}, "recipe": {"batch": 8}}
    options = {"format": "stylegan2-mr run", "version": 1, "config": config, "request": request, "data_sha256": "ab"}
    (folder / "training_options.json").write_text(json.dumps(options))
    (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "log.txt").write_text("Data       few.zip: 300 slices\nDevice     cpu, 2 threads\n\ntick 0 …\n")
    for name, values in (measures or {}).items():
        rows = [{"kimg": at, "value": value, "snapshot": None} for at, value in values]
        (folder / f"metric-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for n, at in enumerate(sheets):
        chance = np.random.default_rng(n)
        contrasts = chance.integers(0, 256, (6, 4, RESOLUTION, RESOLUTION), dtype=np.uint8)
        stored = BRATS.join(contrasts, chance.integers(0, 4, (6, RESOLUTION, RESOLUTION)))
        render.save(render.sheet(stored, BRATS), folder / ("fakesinit.png" if at == 0 else f"fakes{at:06d}.png"))
        if n == 0:
            render.save(render.sheet(stored[::-1], BRATS), folder / "reals.png")
    return folder

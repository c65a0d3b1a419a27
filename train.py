"""Train a GAN on an archive of joint slices.

python train.py --outdir=runs --data=data/train.zip --cfg=stylegan2 --mirror=1
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dnnlib.cli import HELP, options
from dnnlib.config import to_json
from dnnlib.errors import UserError, reports_user_errors
from dnnlib.files import sha256, write_json
from dnnlib.processes import exit_status
from dnnlib.runs import Log, make_run_folder
from dnnlib.system import run
from dnnlib.text import count
from torch_utils.memory import keep_freed_memory, naming_what_to_lower
from training.config import DataConfig, FolderOptions, Recipe, RunOptions, find_recipe, notes, resolve

if TYPE_CHECKING:
    from slices.dataset import SliceDataset


@click.command(context_settings=HELP)
@options(FolderOptions, "folders")
@options(DataConfig, "data")
@options(RunOptions, "asked")
@options(Recipe, "given", unless_given="the recipe's")
@reports_user_errors
@naming_what_to_lower("--batch-gpu, --batch, --cbase or --cmax")
def main(folders: FolderOptions, data: DataConfig, asked: RunOptions, given: dict[str, Any]) -> None:
    """Train a GAN that generates contrasts and label maps jointly.

    Prints a status line per tick. Writes a run folder with log.txt, training_options.json, stats.jsonl, reals.png,
    fakesNNNNNN.png and network-snapshot-NNNNNN.safetensors. Runs on the first GPU, or on the CPU in float32.
    """
    # Imported here, because torch takes seconds to import and --help should not.
    from slices.dataset import SliceDataset
    from slices.leaks import refuse_leaks
    from torch_utils.distributed import World
    from training import training_loop
    from training.run import Run

    keep_freed_memory()
    if folders.outdir is None:
        raise UserError("--run-dir and --resume: not yet; use --outdir")
    dataset = SliceDataset(data.path, subset=data.subset, mirror=data.mirror, use_labels=data.cond, seed=asked.seed)
    refuse_leaks([dataset.archive], asked.exclude)
    recipe = replace(find_recipe(asked.cfg, dataset.resolution, asked.gpus), **given)
    config = resolve(
        recipe,
        data,
        dataset.schema,
        dataset.resolution,
        dataset.c_dim,
        asked.seed,
        asked.snap,
        asked.gpus,
        asked.tf32,
    )
    remarks = notes(asked.cfg, dataset.resolution, given, asked.gpus) + describe_data(data, dataset, asked.exclude)
    if folders.dry_run:
        print(json.dumps(to_json(config), indent=2))
        print("\n".join([*remarks, "Dry run: nothing was trained or written."]))
        return

    folder = make_run_folder(folders.outdir, describe_run(data, asked.cfg, given.get("batch")))
    log = Log(folder / "log.txt")
    for remark in remarks:
        log(remark)
    write_json(folder / "training_options.json", to_json(config))
    digest = sha256(data.path)
    chosen = Run(config=config, folder=folder, data_sha256=digest, max_bad_steps=asked.max_bad_steps)
    outcome = training_loop.train(chosen, dataset, World(), log)
    log()
    log(f"Saved {outcome.snapshot} after {outcome.kimg:g} kimg")
    one = f" --class={shlex.quote(most_frequent_class(dataset))}" if data.cond else ""
    log(f"Next: python generate.py --network={folder} --seeds=0-15{one} --outdir=out")
    log.close()
    if outcome.stopped_by:
        sys.exit(exit_status(outcome.stopped_by))


def describe_data(data: DataConfig, dataset: SliceDataset, exclude: Sequence[str]) -> list[str]:
    """Describe the result of the leak check, and the classes to learn."""
    from slices.leaks import doubts

    told = [f"{data.path} shares no patient with {path}, as far as their names tell" for path in exclude]
    told += doubts([dataset.archive], exclude)
    return [*told, "Classes: " + describe_classes(dataset)] if data.cond else told


def count_classes(dataset: SliceDataset) -> dict[str, int]:
    """Count the slices to learn from: class label -> number of slices."""
    assert dataset.label_counts is not None
    # Class labels without names are called by their numbers.
    names = dataset.archive.info.label_names or map(str, range(dataset.c_dim))
    return dict(zip(names, dataset.label_counts, strict=True))


def most_frequent_class(dataset: SliceDataset) -> str:
    """Return the class label that most slices have."""
    counts = count_classes(dataset)
    return max(counts, key=lambda name: counts[name])


def describe_classes(dataset: SliceDataset) -> str:
    """Describe the number of slices per class label, and the class labels that can't be generated without slices."""
    counts = count_classes(dataset)
    missing = [name for name, n in counts.items() if not n]
    told = ", ".join(f"{name} ({count(n, 'slice')})" for name, n in counts.items() if n)
    return told + (f"; none of {', '.join(missing)}, so generate.py will refuse these" if missing else "")


def describe_run(data: DataConfig, cfg: str, batch: int | None) -> str:
    """Return the second half of a run folder's name, in the manner of StyleGAN2-ADA: train-mirror-auto-batch16."""
    # A list times False is empty, so each line adds its word only under its condition.
    parts = [re.sub(r"[^A-Za-z0-9_.-]", "_", Path(data.path).stem)]
    parts += ["mirror"] * data.mirror + ["cond"] * data.cond
    parts += [f"subset{data.subset}"] * (data.subset is not None)
    parts += [cfg] + [f"batch{batch}"] * (batch is not None)
    return "-".join(parts)


if __name__ == "__main__":
    run(main)

"""Train a GAN on an archive of joint slices.

python train.py --outdir=runs --data=data/train.zip --cfg=stylegan2 --mirror=1
"""

import json
import re
import shlex
import sys
from pathlib import Path

import click

from dnnlib.config import to_json
from dnnlib.errors import reports_user_errors
from dnnlib.files import write_json
from dnnlib.runs import Log, make_run_folder
from dnnlib.system import run
from dnnlib.text import count
from torch_utils.memory import keep_freed_memory, naming_what_to_lower
from training.config import CFG_NAMES, DataConfig, Overrides, notes, resolve


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--outdir", required=True, metavar="DIR", help="where run folders such as 00000-train-auto are made")
@click.option("--data", required=True, metavar="ZIP", help="archive made by dataset_tool.py")
@click.option(
    "--exclude",
    multiple=True,
    metavar="ZIP",
    help="archive whose patients must not be in --data, such as test.zip; may be repeated",
)
@click.option("--cfg", type=click.Choice(CFG_NAMES), default="auto", help="preset; the paper used stylegan2")
@click.option("--gamma", type=click.FloatRange(0), help="R1 weight  [default: the preset's]")
@click.option(
    "--lrate", type=click.FloatRange(0, min_open=True), help="learning rate of both networks  [default: the preset's]"
)
@click.option(
    "--kimg",
    type=click.FloatRange(0, min_open=True),
    help="length in thousands of real images shown  [default: the preset's]",
)
@click.option("--batch", type=click.IntRange(1), help="images of one step  [default: the preset's]")
@click.option("--batch-gpu", type=click.IntRange(1), help="images at a time, to save memory  [default: --batch]")
@click.option("--mirror", type=bool, default=False, metavar="BOOL", help="double the data by left-right flips")
@click.option("--subset", type=click.IntRange(1), metavar="N", help="train on N slices only, drawn with --seed")
@click.option("--cond", type=bool, default=False, metavar="BOOL", help="condition on the archive's class labels")
@click.option(
    "--snap",
    type=click.IntRange(0),
    default=50,
    help="save a snapshot every so many ticks of 4 kimg; 0: at the end only",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="of weights, latents and data order")
@click.option("--workers", type=click.IntRange(0), default=2, help="processes that read data too large for memory")
@click.option("--mixing", type=click.FloatRange(0, 1), help="probability of style mixing  [default: the preset's]")
@click.option("--pl-weight", type=click.FloatRange(0), help="path length weight; 0: off  [default: the preset's]")
@click.option("--map-depth", type=click.IntRange(1), help="layers of the mapping network  [default: the preset's]")
@click.option(
    "--cbase",
    type=click.IntRange(1),
    help="feature maps at a resolution: cbase / resolution, …  [default: the preset's]",
)
@click.option("--cmax", type=click.IntRange(1), help="… but at most cmax  [default: 512]")
@click.option(
    "--fp32",
    type=bool,
    default=False,
    metavar="BOOL",
    help="no half precision on a GPU, and no clamp of activations, which only that needs",
)
@click.option("--z-dim", type=click.IntRange(1), help="size of the latent z  [default: 512]")
@click.option("--w-dim", type=click.IntRange(1), help="size of the style w  [default: --z-dim]")
@click.option("-n", "--dry-run", is_flag=True, help="print the resolved configuration and stop")
@reports_user_errors
@naming_what_to_lower("--batch-gpu, --batch, --cbase or --cmax")
def main(outdir, data, exclude, cfg, mirror, subset, cond, snap, seed, workers, dry_run, **overrides):
    """Train a GAN that generates contrasts and label maps jointly.

    Prints a status line per tick and writes into a run folder: log.txt, training_options.json, stats.jsonl, reals.png,
    fakesNNNNNN.png and network-snapshot-NNNNNN.safetensors. Runs on the first GPU, or on the CPU in float32.
    """
    from slices.dataset import SliceDataset  # torch takes seconds to import: --help should not
    from slices.leaks import doubts, refuse_leaks
    from training.training_loop import TrainingRun

    keep_freed_memory()
    data_config = DataConfig(data, mirror, subset, cond, workers)
    dataset = SliceDataset(data, subset=subset, mirror=mirror, use_labels=cond, seed=seed)
    refuse_leaks([dataset.archive], exclude)
    overrides = Overrides(**overrides)
    config = resolve(cfg, data_config, dataset.schema, dataset.resolution, dataset.c_dim, overrides, seed, snap)
    remarks = notes(cfg, dataset.resolution, overrides)
    remarks += [f"{data} shares no patient with {path}, as far as their names tell" for path in exclude]
    remarks += doubts([dataset.archive], exclude)
    if cond:
        remarks.append("Classes: " + describe_classes(dataset))
    if dry_run:
        print(json.dumps(to_json(config), indent=2))
        print("\n".join([*remarks, "Dry run: nothing was trained or written."]))
        return

    folder = make_run_folder(outdir, describe_run(data_config, cfg, overrides.batch))
    log = Log(folder / "log.txt")
    for remark in remarks:
        log(remark)
    write_json(folder / "training_options.json", to_json(config))
    outcome = TrainingRun(config, dataset, folder, log).run()
    log()
    log(f"Saved {outcome.snapshot} after {outcome.kimg:g} kimg")
    one = f" --class={shlex.quote(most_frequent_class(dataset))}" if cond else ""
    log(f"Next: python generate.py --network={folder} --seeds=0-15{one} --outdir=out")
    log.close()
    if outcome.interrupted:
        sys.exit(130)


def count_classes(dataset) -> dict[str, int]:
    """Class -> slices to learn from."""
    names = dataset.archive.info.label_names or map(str, range(dataset.c_dim))
    return dict(zip(names, dataset.label_counts, strict=True))


def most_frequent_class(dataset) -> str:
    counts = count_classes(dataset)
    return max(counts, key=counts.get)


def describe_classes(dataset) -> str:
    """How many slices of each class there are to learn from, and which can't be generated for want of any."""
    counts = count_classes(dataset)
    missing = [name for name, n in counts.items() if not n]
    told = ", ".join(f"{name} ({count(n, 'slice')})" for name, n in counts.items() if n)
    return told + (f"; none of {', '.join(missing)}, which generate.py will refuse" if missing else "")


def describe_run(data, cfg: str, batch: int | None) -> str:
    """The second half of a run folder's name, in the published manner: train-mirror-auto-batch16."""
    parts = [re.sub(r"[^A-Za-z0-9_.-]", "_", Path(data.path).stem)]
    parts += ["mirror"] * data.mirror + ["cond"] * data.cond
    parts += [f"subset{data.subset}"] * (data.subset is not None)
    parts += [cfg] + [f"batch{batch}"] * (batch is not None)
    return "-".join(parts)


if __name__ == "__main__":
    run(main)

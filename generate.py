"""Generate joint slices from a snapshot: pictures, or an archive to train a segmentation network on.

python generate.py --network=runs/00000-train-stylegan2 --seeds=0-63 --outdir=out
python generate.py --network=runs/00000-train-stylegan2 --seeds=0-9999 --dest=fake.zip
"""

import math
from pathlib import Path

import click

from dnnlib.errors import UserError, reports_user_errors
from dnnlib.files import atomic_path, make_folder, refuse_existing
from dnnlib.system import run
from dnnlib.text import count, parse_integers, tool_version
from torch_utils.memory import keep_freed_memory, naming_what_to_lower

LONGEST_CLASS = 100  # characters of a class that a patient's name has room for
ON_SHEET = 60  # more slices than this are not legible on one contact sheet


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--network", required=True, metavar="FILE|DIR", help="snapshot, or a run folder for its latest one")
@click.option("--seeds", required=True, metavar="LIST", help="for example 0-63 or 1,5,20-25; at most a million")
@click.option("--outdir", metavar="DIR", help="write a panel per seed and a contact sheet into this folder")
@click.option("--dest", metavar="ZIP", help="write an archive instead: labels one-hot, every slice its own patient")
@click.option("--trunc", type=float, default=1, help="truncation psi: 1 full variety, below 1 more typical slices")
@click.option(
    "--noise-mode",
    type=click.Choice(["const", "random", "none"]),
    default="const",
    help="const: the network's stored noise; random: drawn from the seed",
)
@click.option(
    "--class",
    "wanted_class",
    metavar="NAME|N",
    help="class label, for a network trained with --cond; an archive keeps it",
)
@click.option("--batch", type=click.IntRange(1), default=8, help="slices computed at a time")
@click.option("--force", is_flag=True, help="replace pictures or an archive that exist")
@reports_user_errors
@naming_what_to_lower("--batch")
def main(network, seeds, outdir, dest, trunc, noise_mode, wanted_class, batch, force):
    """Generate joint slices of contrasts and label map, one per seed.

    Synthetic slices are for research. They may resemble training patients, and are not a means of anonymisation.
    """
    if (outdir is None) == (dest is None):
        raise UserError("give either --outdir for pictures or --dest for an archive")
    if not math.isfinite(trunc):
        raise UserError(f"--trunc {trunc}: expected a number, such as 0.7")
    seeds = list(dict.fromkeys(parse_integers(seeds, limit=2**32)))
    if dest is not None and not dest.lower().endswith(".zip"):
        raise UserError(f"--dest {dest}: expected a name that ends in .zip")

    from training import sampling  # torch takes seconds to import: --help and mistakes should not
    from training.snapshot import load_generator

    keep_freed_memory()
    loaded = load_generator(network)
    label = sampling.find_class(loaded, wanted_class)
    c = sampling.class_vector(loaded, wanted_class)
    samples = sampling.generate(loaded, seeds, c, trunc, noise_mode, batch)
    if outdir is not None:
        write_pictures(samples, seeds, loaded.info, label, Path(outdir), force)
    else:
        options = {"trunc": trunc, "noise_mode": noise_mode, "class": wanted_class}
        write_archive(samples, len(seeds), loaded, label, refuse_existing(dest, force), options, force)


def describe_class(info, label: int | None) -> str:
    """What is said of slices of a class; nothing if there are no classes."""
    if label is None:
        return ""
    learned = "an unknown number of slices" if info.label_counts is None else count(info.label_counts[label], "slice")
    return f" of class {info.label_name(label)} (learned from {learned})"


def write_pictures(samples, seeds, info, label: int | None, outdir: Path, force: bool) -> None:
    """A panel per seed as seedNNNN.png, and the first ones together as contact_sheet.png."""
    import numpy as np
    import tqdm

    from slices import render

    sheet = outdir / "contact_sheet.png"
    panels = {seed: outdir / f"seed{seed:04d}.png" for seed in seeds}
    for path in [*panels.values(), sheet]:
        refuse_existing(path, force)
    make_folder(outdir)
    schema, first = info.schema, []
    of_class = "" if label is None else f", {info.label_name(label)}"
    for sample in tqdm.tqdm(samples, total=len(seeds), unit="slice"):
        panel = render.panel(sample.stored, schema, title=f"seed {sample.seed}{of_class}")
        render.save(panel, panels[sample.seed], force)
        if len(first) < ON_SHEET:
            first.append(sample.stored)
    render.save(render.sheet(np.stack(first), schema), sheet, force)
    shown = "all" if len(first) == len(seeds) else f"the first {len(first)}"
    print(f"{count(len(seeds), 'panel')}{describe_class(info, label)} in {outdir}, {shown} together in {sheet}")


def write_archive(samples, total: int, loaded, label: int | None, dest: Path, options: dict, force: bool) -> None:
    """Generated slices as an archive that segmentation and dataset_tool.py inspect read like a real one.

    Every slice is a patient of its own, whose name says of which snapshot, class and seed; others count as other ones.
    """
    import tqdm

    from slices.archive.writer import ArchiveWriter

    made = {
        "version": tool_version(),
        "command": "generate.py",
        "options": options,
        "snapshot": {"name": loaded.path.name, "sha256": loaded.sha256, "kimg": loaded.info.kimg},
    }
    make_folder(dest.parent)
    info, resolution = loaded.info, loaded.generator.config.resolution
    known = {"label_names": info.label_names, "seen": info.patients, "pixel": info.pixel}
    name = f"generated-{loaded.sha256[:8]}" + ("" if label is None else f"-{info.label_name(label)[:LONGEST_CLASS]}")
    with atomic_path(dest, force) as place, ArchiveWriter(place, info.schema, resolution, made, **known) as archive:
        for sample in tqdm.tqdm(samples, total=total, unit="slice"):
            patient = f"{name}-seed{sample.seed}"
            archive.add(sample.stored, patient=patient, label=label, seed=sample.seed, snapshot=loaded.sha256)
    print(f"{count(total, 'generated slice')}{describe_class(info, label)} in {dest}")


if __name__ == "__main__":
    run(main)

"""Generate joint slices from a snapshot: pictures, or an archive to train a segmentation network on.

python generate.py --network=runs/00000-train-stylegan2 --seeds=0-63 --outdir=out
python generate.py --network=runs/00000-train-stylegan2 --seeds=0-9999 --dest=fake.zip
"""

import math
from pathlib import Path

import click

from dnnlib.errors import UserError, reports_user_errors
from dnnlib.files import make_folder, refuse_existing
from dnnlib.system import run
from dnnlib.text import parse_integers, tool_version
from torch_utils.memory import keep_freed_memory, naming_what_to_lower

ON_SHEET = 60  # more slices than this are not legible on one contact sheet


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--network", required=True, metavar="FILE|DIR", help="snapshot, or a run folder for its latest one")
@click.option("--seeds", required=True, metavar="LIST", help="for example 0-63 or 1,5,20-25")
@click.option("--outdir", metavar="DIR", help="write a panel per seed and a contact sheet into this folder")
@click.option("--dest", metavar="ZIP", help="write an archive instead: labels one-hot, every slice its own patient")
@click.option("--trunc", type=float, default=1, help="truncation psi: 1 full variety, below 1 more typical slices")
@click.option("--noise-mode", type=click.Choice(["const", "random", "none"]), default="const",
              help="const: the network's stored noise; random: drawn from the seed")  # fmt: skip
@click.option("--class", "wanted_class", metavar="NAME|N", help="class label, for a network trained with --cond")
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
    c = sampling.class_vector(loaded, wanted_class)
    samples = sampling.generate(loaded, seeds, c, trunc, noise_mode, batch)
    if outdir is not None:
        write_pictures(samples, seeds, loaded.info.schema, Path(outdir), force)
    else:
        options = {"trunc": trunc, "noise_mode": noise_mode, "class": wanted_class}
        write_archive(samples, len(seeds), loaded, refuse_existing(dest, force), options, force)


def write_pictures(samples, seeds, schema, outdir: Path, force: bool) -> None:
    """A panel per seed as seedNNNN.png, and the first ones together as contact_sheet.png."""
    import numpy as np
    import tqdm

    from slices import render

    sheet = outdir / "contact_sheet.png"
    panels = {seed: outdir / f"seed{seed:04d}.png" for seed in seeds}
    for path in [*panels.values(), sheet]:
        refuse_existing(path, force)
    make_folder(outdir)
    first = []
    for sample in tqdm.tqdm(samples, total=len(seeds), unit="slice"):
        render.save(render.panel(sample.stored, schema, title=f"seed {sample.seed}"), panels[sample.seed], force)
        if len(first) < ON_SHEET:
            first.append(sample.stored)
    render.save(render.grid(np.stack(first), schema), sheet, force)
    shown = "all" if len(first) == len(seeds) else f"the first {len(first)}"
    print(f"{len(seeds)} panels in {outdir}, {shown} together in {sheet}")


def write_archive(samples, count: int, loaded, dest: Path, options: dict, force: bool) -> None:
    """Generated slices as an archive that segmentation and dataset_tool.py inspect read like a real one."""
    import tqdm

    from slices.archive import ArchiveWriter

    made = {
        "version": tool_version(),
        "command": "generate.py",
        "options": options,
        "snapshot": {"name": loaded.path.name, "sha256": loaded.sha256, "kimg": loaded.info.kimg},
    }
    make_folder(dest.parent)
    resolution = loaded.generator.config.resolution
    with ArchiveWriter(dest, loaded.info.schema, resolution, made, seen=loaded.info.patients, force=force) as archive:
        for sample in tqdm.tqdm(samples, total=count, unit="slice"):
            patient = f"generated-{loaded.sha256[:8]}-seed{sample.seed}"
            archive.add(sample.stored, patient=patient, seed=sample.seed, snapshot=loaded.sha256)
    print(f"{count} generated slices in {dest}")


if __name__ == "__main__":
    run(main)

"""The whole experiment, stage by stage: convert, train a GAN, generate, train U-Nets, compare their Dice.

python reproduce.py --preset=demo --outdir=runs/demo
python reproduce.py --preset=paper --outdir=runs/paper --source=BraTS18
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dnnlib.cli import HELP, Checked, given, option, options
from dnnlib.errors import UserError, reports_user_errors
from dnnlib.files import make_folder, read_json
from dnnlib.jobs import Graph, Job, Programs, held
from dnnlib.slots import find_slots
from dnnlib.system import run
from dnnlib.text import format_time
from reproduce_stages import (
    ARMS,
    LESION_FREE,
    PRESETS,
    RELATIVE_TO,
    Made,
    Preset,
    Run,
    make_phantoms,
    make_slices,
)
from segmentation.experiment import COMPARED, run_arms

if TYPE_CHECKING:
    from slices.class_areas import ClassAreas

# Packages that each program imports. A stage runs again if one of their sources has changed.
PROGRAMS = Programs(
    Path(__file__).resolve().parent,
    {
        "dataset_tool.py": ("dnnlib", "slices"),
        "train.py": ("dnnlib", "slices", "torch_utils", "training"),
        "generate.py": ("dnnlib", "slices", "torch_utils", "training"),
        "segmentation": ("dnnlib", "slices", "torch_utils"),
    },
)


@dataclass(frozen=True)
class Options(Checked):
    """Options of the command line."""

    preset: str = option(
        "demo: phantoms at 64×64 on a laptop; paper: BraTS 2018 at 256×256 on GPUs.", choices=tuple(PRESETS)
    )
    outdir: str = option("Folder for all results; a second call continues there.", metavar="DIR")
    source: str | None = option("BraTS 2018 training data, for --preset=paper.", default=None, metavar="DIR")
    kimg: float | None = option("Train the GAN for this many kimg instead.", default=None, above=0)
    steps: int | None = option("Train each U-Net for this many steps instead.", default=None, least=1)
    patients: int | None = option("Make this many phantom patients instead (demo).", default=None, least=4)


@click.command(context_settings=HELP)
@options(Options, "asked")
@reports_user_errors
def main(asked: Options) -> None:
    """Reproduce the paper's first table: U-Nets trained on real, fake, or all slices, and tested on real patients.

    A stage is skipped if its options, inputs and results are the same as after the last run.
    """
    preset = configure(asked)
    outdir, slots = make_folder(asked.outdir), find_slots()
    Graph(outdir, PROGRAMS, []).refuse_strangers(COMPARED)
    with held(outdir) as lock:

        def run_jobs(jobs: Sequence[Job]) -> dict[str, list[Path]]:
            graph = Graph(outdir, PROGRAMS, jobs)
            graph.run(slots, lock)
            return {job.name: graph.results(job.name) for job in jobs}

        reproduce(run_jobs, outdir, preset, asked.source)


def configure(asked: Options) -> Preset:
    """Return the preset, with values replaced by the user's. Raises UserError for options that don't fit it."""
    if asked.source is None and asked.preset == "paper":
        raise UserError("--preset=paper needs --source, the folder of BraTS 2018 with HGG and LGG in it")
    if asked.source is not None and asked.preset == "demo":
        raise UserError("--preset=demo makes its own patients and takes no --source; --preset=paper does")
    if asked.patients is not None and asked.preset == "paper":
        raise UserError("--patients is the number of phantoms; --preset=paper uses the patients in --source")
    if asked.source is not None and not Path(asked.source).is_dir():
        raise UserError(f"{asked.source}: no such folder; --source is the folder of BraTS 2018 with HGG and LGG in it")
    preset = PRESETS[asked.preset]
    return replace(
        preset,
        train=preset.train | given({"kimg": asked.kimg}),
        unet=preset.unet | given({"steps": asked.steps}),
        phantom=preset.phantom | given({"patients": asked.patients}),
    )


def reproduce(run_jobs: Run, outdir: Path, preset: Preset, source: str | None) -> None:
    """Run all stages, print the results, and say where the files are."""
    start = time.time()
    made = make_slices(run_jobs, preset, make_phantoms(run_jobs, preset) if source is None else Path(source))
    real, fake = measure(made.real), measure(made.fake)
    unet = preset.unet
    # A U-Net can draw a fixed share of slices without lesion only if there are slices of both kinds.
    if not (fake.num_with_lesion and fake.num_lesion_free):
        share = f"--lesion-free={LESION_FREE['lesion_free']}"
        print(f"\nnote: all fakes have a lesion, or none has: U-Nets are trained without {share}")
        unet = {name: value for name, value in unet.items() if name not in LESION_FREE}
    results = run_arms(run_jobs, ARMS, {"real": made.real, "fake": made.fake}, made.test, unet)
    report(outdir, made, results, real, fake)
    print(f"\nPictures\n  {made.sheet}   fakes: contrasts and labels")
    print(f"  {made.snapshot.parent / 'reals.png'}   real slices")
    for arm, path in results.items():
        print(f"  {path.parent / 'patients.png'}   worst, median and best patient of {arm}")
    print(f"  {outdir / 'dice.png'}   the table as a figure")
    print(f"\nAll stages took {format_time(time.time() - start)}. Results: {outdir}/results.json")
    print(what_next(made.snapshot))


def measure(archive: Path) -> ClassAreas:
    """Measure the class areas in all slices of an archive."""
    # Imported here, because --help should not wait for numpy.
    from slices.archive.reader import ArchiveReader
    from slices.class_areas import ClassAreas

    return ClassAreas.of_archive(ArchiveReader(archive))


def report(outdir: Path, made: Made, results: Mapping[str, Path], real: ClassAreas, fake: ClassAreas) -> None:
    """Print the Dice table and the class areas, and write them to files."""
    # Imported here, because torch takes seconds to import and --help should not.
    from segmentation.comparison import Comparison, GanFacts, to_text, write_comparison
    from segmentation.evaluate import load_evaluation

    seed = read_json(made.snapshot.parent / "training_options.json")["config"]["seed"]
    gan = GanFacts(kimg=int(made.snapshot.stem[-6:]), seed=seed)  # network-snapshot-NNNNNN
    arms = {arm: load_evaluation(path) for arm, path in results.items()}
    comparison = Comparison(arms, RELATIVE_TO, real, fake, gan)
    print("\n" + to_text(comparison))
    write_comparison(comparison, outdir)


def what_next(snapshot: Path) -> str:
    """Suggest commands to continue with."""
    return f"""
What to try next
  python generate.py --network={snapshot} --seeds=100-123 --trunc=0.7 --outdir=out
  python dataset_tool.py convert --source=<your BraTS folder> --dest=data --resolution=128
  python reproduce.py --preset=paper --source=<BraTS 2018 training folder> --outdir=runs/paper
For research only, not for diagnosis. Synthetic slices are not a means of anonymization."""


if __name__ == "__main__":
    run(main)

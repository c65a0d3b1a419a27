"""The whole experiment, stage by stage: convert, train a GAN, generate, train U-Nets, compare their Dice.

python reproduce.py --preset=demo --outdir=runs/demo
python reproduce.py --preset=paper --outdir=runs/paper --source=BraTS18
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import click

from dnnlib.errors import UserError, reports_user_errors
from dnnlib.files import json_bytes, make_folder, read_json
from dnnlib.staged import Staged
from dnnlib.stages import Programs, Stage, Stages, fingerprint
from dnnlib.system import run
from dnnlib.text import format_table, format_time


@dataclass(frozen=True)
class Preset:
    """What the stages are told. Each field holds options of the command that its name says."""

    convert: tuple[str, ...]
    train: tuple[str, ...]
    unet: tuple[str, ...]
    phantom: tuple[str, ...] = ()  # the paper's data come from --source


# U-Nets are tested on all slices, and only those that have learned what has no lesion leave it alone. The real training
# slices get such a share, so that the GAN learns it too, and every arm draws the same one, whatever its fakes have.
LESION_FREE = "--lesion-free=0.2"
PRESETS = {
    # Chosen so that all of it takes about a quarter of an hour on two busy CPU cores.
    "demo": Preset(
        phantom=("--patients=90", "--seed=0", "--shape=96x96x62"),
        convert=("--resolution=64", "--fov=200", "--min-tumor-pixels=16", LESION_FREE, "--test-fraction=0.15"),
        train=(
            "--cfg=auto",
            "--mirror=1",
            "--batch=8",
            "--lrate=0.005",
            "--gamma=5",
            "--mixing=0",
            "--pl-weight=0",
            "--z-dim=128",
            "--cbase=1024",
            "--cmax=64",
            "--fp32=1",
            "--kimg=22",
            "--snap=2",
        ),
        unet=("--steps=700", "--width=8", "--batch=8", "--lr=0.01", "--empty=0.05", LESION_FREE),
    ),
    # The abstract leaves open what --slices, --min-tumor-pixels and the U-Net's options say; see the README.
    "paper": Preset(
        convert=("--resolution=256", "--grade=HGG", LESION_FREE),
        train=("--cfg=stylegan2", "--mirror=1"),
        unet=("--steps=20000", "--width=32", "--batch=32", "--empty=0.05", LESION_FREE),
    ),
}
PROGRAMS = Programs(
    Path(__file__).resolve().parent,
    {
        "dataset_tool.py": ("dnnlib", "slices"),
        "train.py": ("dnnlib", "slices", "torch_utils", "training"),
        "generate.py": ("dnnlib", "slices", "torch_utils", "training"),
        "segmentation": ("dnnlib", "slices", "torch_utils"),
    },
)
REPORT = ("results.json", "results.md", "dice.png")
ARMS = {"100 % R": ("real",), "100 % F": ("fake",), "100 % F + 100 % R": ("fake", "real")}


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    required=True,
    help="demo: phantoms at 64×64 on a laptop; paper: BraTS 2018 at 256×256 on GPUs",
)
@click.option("--outdir", required=True, metavar="DIR", help="where all results go; a second call goes on from there")
@click.option("--source", metavar="DIR", help="BraTS 2018 training data, for --preset=paper")
@click.option("--kimg", type=click.FloatRange(0, min_open=True), help="train the GAN for as many kimg instead")
@click.option("--steps", type=click.IntRange(1), help="train each U-Net for as many steps instead")
@click.option("--patients", type=click.IntRange(4), help="make as many phantom patients instead (demo)")
@reports_user_errors
def main(preset, outdir, source, kimg, steps, patients):
    """Reproduce the paper's first table: U-Nets trained on real, on fake, and on both, tested on real patients.

    A stage whose options and inputs are the same as last time, and whose results are there, is not run again.
    """
    chosen = PRESETS[preset]
    if source is None and preset == "paper":
        raise UserError("--preset=paper needs --source, the folder of BraTS 2018 with HGG and LGG in it")
    if source is not None and preset == "demo":
        raise UserError("--preset=demo makes its own patients and takes no --source; --preset=paper does")
    if patients is not None and preset == "paper":
        raise UserError("--patients is the number of phantoms; --preset=paper takes the patients of --source")
    if source is not None and not Path(source).is_dir():
        raise UserError(f"{source}: no such folder; --source is the folder of BraTS 2018 with HGG and LGG in it")
    chosen = replace(
        chosen,
        train=with_option(chosen.train, "kimg", kimg),
        unet=with_option(chosen.unet, "steps", steps),
        phantom=with_option(chosen.phantom, "patients", patients),
    )
    stages = Stages(make_folder(outdir), PROGRAMS)
    stages.refuse_strangers(REPORT)
    with stages.held():
        reproduce(chosen, source, stages)


def with_option(options: tuple[str, ...], name: str, value) -> tuple[str, ...]:
    """Options with --name=value in place of what was there; unchanged if the value is None."""
    if value is None:
        return options
    return (*(o for o in options if not o.startswith(f"--{name}=")), f"--{name}={value}")


def reproduce(preset: Preset, source: str | None, stages: Stages) -> None:
    start = time.time()
    if source is None:
        folder = "phantoms-" + fingerprint(preset.phantom)[:8]  # other patients go elsewhere, never among these
        (source,) = stages.run(
            Stage(
                "phantom",
                "make synthetic patients",
                ["dataset_tool.py", "phantom", f"--dest={{out}}/{folder}", *preset.phantom],
                [],
                [folder],
            )
        )
    real, test, _ = stages.run(
        Stage(
            "convert",
            "cut the patients' volumes into joint slices, split by patient",
            ["dataset_tool.py", "convert", f"--source={source}", "--dest={out}/real", *preset.convert],
            [source],
            ["real/train.zip", "real/test.zip", "real/split.json"],
        )
    )
    (snapshot,) = stages.run(
        Stage(
            "train",
            "train the GAN on the real training slices",
            ["train.py", "--outdir={out}/gan", f"--data={real}", f"--exclude={test}", *preset.train],
            [real, test],
            ["gan/*/network-snapshot-*.safetensors"],
            replaces=False,
        )
    )
    (fake,) = stages.run(
        Stage(
            "generate",
            "as many fake slices as there are real ones",
            [
                "generate.py",
                f"--network={snapshot}",
                f"--seeds=0-{count_slices(real) - 1}",
                "--dest={out}/fake/fake.zip",
            ],
            [snapshot, real],
            ["fake/fake.zip"],
        )
    )
    sheet, _ = stages.run(
        Stage(
            "panels",
            "pictures of the first fakes",
            ["generate.py", f"--network={snapshot}", "--seeds=0-23", "--outdir={out}/panels"],
            [snapshot],
            ["panels/contact_sheet.png", "panels/seed*.png"],
        )
    )
    archives = {"real": real, "fake": fake}
    unet_options = preset.unet
    if not (count_slices(fake, True) and count_slices(fake, False)):
        print(f"\nnote: all fakes have a lesion, or none has: U-Nets draw slices as they come, without {LESION_FREE}")
        unet_options = tuple(option for option in unet_options if option != LESION_FREE)
    results = {}
    for arm, names in ARMS.items():
        short = "unet-" + "-".join(names)
        data = [archives[name] for name in names]
        options = [*(f"--data={d}" for d in data), f"--exclude={test}", *unet_options]
        unet, _ = stages.run(
            Stage(
                short,
                f"train a U-Net on {arm}",
                ["-m", "segmentation", "train", *options, f"--outdir={{out}}/{short}"],
                [*data, test],
                [f"{short}/unet.safetensors", f"{short}/training.json"],
            )
        )
        results[arm], _ = stages.run(
            Stage(
                f"{short}-test",
                f"Dice of that U-Net ({arm}) on the test patients",
                [
                    "-m",
                    "segmentation",
                    "evaluate",
                    f"--model={unet}",
                    f"--data={test}",
                    f"--outdir={{out}}/{short}-test",
                ],
                [unet, test],
                [f"{short}-test/results.json", f"{short}-test/patients.png"],
            )
        )
    report(stages.outdir, results, real, fake, snapshot)
    print(f"\nPictures\n  {sheet}   fakes: contrasts and labels\n  {snapshot.parent / 'reals.png'}   real slices")
    for arm in results:
        print(f"  {results[arm].parent / 'patients.png'}   worst, median and best patient of {arm}")
    print(f"  {stages.outdir / 'dice.png'}   the table as a figure")
    print(f"\nAll of it took {format_time(time.time() - start)}. Results: {stages.outdir}/results.json")
    print(what_next(snapshot))


def count_slices(path: Path, lesion: bool | None = None) -> int:
    """How many slices an archive has: all, or those with a lesion, or without."""
    from slices.archive.reader import ArchiveReader

    archive = ArchiveReader(path)
    if lesion is None:
        return len(archive)
    return sum(archive.schema.split(archive.read(i))[1].any() == lesion for i in range(len(archive)))


# ---- What came of it -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassAreas:
    """Mean area of each lesion class, as a share of the slice, in real and in fake slices."""

    real: dict[str, float]
    fake: dict[str, float]

    def rows(self) -> list[list[str]]:
        return [
            [name, f"{real:.3%}", f"{self.fake[name]:.3%}", f"{self.fake[name] / real:.2f}" if real else "-"]
            for name, real in self.real.items()
        ]


def mean_areas(path: Path) -> dict[str, float]:
    """Class name -> mean share of a slice's pixels over all slices of an archive."""
    import numpy as np

    from slices.archive.reader import ArchiveReader

    archive = ArchiveReader(path)
    counts = np.zeros(archive.schema.num_maps)
    for i in range(len(archive)):
        _, classes = archive.schema.split(archive.read(i))
        counts += np.bincount(classes.ravel(), minlength=archive.schema.num_maps)
    shares = counts / counts.sum()
    return dict(zip(archive.schema.class_names, shares[1:].tolist(), strict=True))


def report(outdir: Path, results: dict[str, Path], real: Path, fake: Path, snapshot: Path) -> None:
    """Print the Dice table and the class areas; write them as results.json, results.md and dice.png."""
    from segmentation.comparison import arms_table
    from segmentation.evaluate import load_evaluation
    from segmentation.report import describe_data

    arms = {arm: load_evaluation(path) for arm, path in results.items()}
    areas = ClassAreas(mean_areas(real), mean_areas(fake))
    free = {name: count_slices(path, False) / count_slices(path) for name, path in (("real", real), ("fake", fake))}
    gan = {"kimg": int(snapshot.stem[-6:]), "seed": read_json(snapshot.parent / "training_options.json")["seed"]}
    table = arms_table(arms)
    notes = (
        *table.notes,
        f"one GAN, with seed {gan['seed']}, of {gan['kimg']} kimg",
        f"training slices without lesion: {free['real']:.1%} of the real ones, {free['fake']:.1%} of the fakes",
        compare(arms),
    )
    table = table._replace(notes=notes)
    area_header = ["class", "real", "fake", "fake / real"]
    titles = ("Dice on patients whom no network has seen", "Mean area of each class in a training slice")
    print(f"\n=== {titles[0]}\n{describe_data(next(iter(arms.values())))}\n{table.text()}")
    print(f"\n=== {titles[1]}\n{format_table(area_header, areas.rows())}")
    content = {
        "notes": notes,
        "dice": {arm: read_json(path) for arm, path in results.items()},
        "class_areas": {"real": areas.real, "fake": areas.fake},
        "slices_without_lesion": free,
        "gan": gan,
    }
    markdown = [f"{titles[0]}\n", table.markdown(), f"\n{titles[1]}\n"]
    markdown += ["| " + " | ".join(area_header) + " |", "| --- | ---: | ---: | ---: |"]
    markdown += ["| " + " | ".join(row) + " |" for row in areas.rows()]
    values, words, picture = (outdir / name for name in REPORT)
    with Staged(values, force=True) as staged:
        staged.write(values, json_bytes(content))
        staged.write(words, ("\n".join(markdown) + "\n").encode())
        draw_dice(arms, areas, staged.place(picture))


def compare(arms) -> str:
    """One line: how far the fakes alone come, in the schema's first region (WT for BraTS)."""
    real, fake = arms["100 % R"], arms["100 % F"]
    name = next(iter(real.regions or real.labels))
    real, fake = ((e.regions or e.labels)[name] for e in (real, fake))
    own, masked = share_of(fake.mean, real.mean), share_of(fake.masked_mean, real.masked_mean)
    return f"{name}: the Dice of 100 % F is {own} that of 100 % R; masked, {masked} it"


def share_of(part: float, whole: float) -> str:
    return f"{part / whole:.0%} of" if whole else "not comparable with"


def draw_dice(arms, areas: ClassAreas, path: Path) -> None:
    """Bars of Dice per region and arm, one dot per examination, and beside them the class areas of real and fake."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from dnnlib.files import atomic_path
    from segmentation.report import about_data

    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    first = next(iter(arms.values()))
    regions = list(first.regions) or list(first.labels)
    colours = ("#4477aa", "#ee6677", "#228833")
    for k, (arm, evaluation) in enumerate(arms.items()):
        x = np.arange(len(regions)) + (k - 1) * 0.27
        summaries = evaluation.regions or evaluation.labels
        means = [summaries[r].mean for r in regions]
        left.bar(x, means, width=0.25, color=colours[k], alpha=0.75, label=f"trained on {arm}")
        left.plot(x, [summaries[r].masked_mean for r in regions], "_", color="black", markersize=16)
        for place, region in zip(x, regions, strict=True):
            dice = [(p.regions or p.labels)[region].dice for p in evaluation.examinations]
            spread = np.linspace(-0.08, 0.08, len(dice)) if len(dice) > 1 else [0]
            left.plot(place + spread, dice, ".", color="black", markersize=3, alpha=0.6, clip_on=False)
    left.set_xticks(range(len(regions)), regions)
    left.set_title("Dice on patients whom no network has seen")
    left.set(ylim=(0, 1.02), ylabel="Dice")
    legend = "bars: mean of the networks' own answers, lines: masked, dots: examinations; one training of each arm"
    figure.supxlabel("\n".join([legend, *about_data(first)]), fontsize=8)
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, frameon=False)
    x = np.arange(len(areas.real))
    right.bar(x - 0.2, [100 * v for v in areas.real.values()], width=0.38, color="#777777", label="real")
    right.bar(x + 0.2, [100 * v for v in areas.fake.values()], width=0.38, color=colours[1], label="fake")
    right.set_xticks(x, list(areas.real))
    right.set(ylabel="mean share of a slice in %", title="Class areas")
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def what_next(snapshot: Path) -> str:
    """A few commands to go on with."""
    return f"""
What to try next
  python generate.py --network={snapshot} --seeds=100-123 --trunc=0.7 --outdir=out
  python dataset_tool.py convert --source=<your BraTS folder> --dest=data --resolution=128
  python reproduce.py --preset=paper --source=<BraTS 2018 training folder> --outdir=runs/paper
For research only: not for diagnosis, and synthetic slices are no means of anonymisation."""


if __name__ == "__main__":
    run(main)

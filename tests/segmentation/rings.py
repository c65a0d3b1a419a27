"""Slices with a core and a rim for U-Nets to learn, archives of them, and calls of the program."""

from pathlib import Path

import numpy as np
from click.testing import CliRunner

from helpers.drawn import draw_slice, write_slices
from segmentation.__main__ import main
from slices.archive.format import Volume
from slices.archive.writer import ArchiveWriter
from slices.schema import LesionClass, Region, Schema

RING = Schema(
    contrasts=("t1", "flair"),
    classes=(LesionClass("core", "dark core", 1), LesionClass("rim", "bright rim", 2)),
    regions=(Region("whole", ("core", "rim")), Region("core", ("core",))),
)
SIZE = 32  # pixels, the fewest that a U-Net takes
LPS = ((-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
TINY = ("--steps", 1, "--batch", 2, "--width", 2, "--workers", 0)  # options of a training


def draw_ring(random: np.random.RandomState, schema: Schema = RING, size: int = SIZE, **options) -> np.ndarray:
    """A stored slice. options: those of draw_slice."""
    return draw_slice(random, size, schema, **options)


def write_rings(path: Path, slices, schema: Schema = RING, **options) -> Path:
    """Write an archive of (patient, stored slice) pairs, in this order."""
    return write_slices(path, slices, schema, **options)


def write_patients(path: Path, patients, **options) -> Path:
    """Write an archive with one slice of each patient."""
    random = np.random.RandomState(0)
    return write_rings(path, ((patient, draw_ring(random)) for patient in patients), **options)


def write_volumes(path, volumes, slices=range(4), of=4, pixel=1.0, made=None, **options) -> Path:
    """Write an archive of volumes {name: patient}. slices: those in the archive, out of `of` in each volume."""
    random = np.random.RandomState(5)
    windows = dict.fromkeys(RING.contrasts, (0.0, 1.0))
    with ArchiveWriter(path, RING, SIZE, made or {}, **options) as writer:
        for name, patient in volumes.items():
            writer.volumes[name] = Volume(patient, (SIZE, SIZE, of), LPS, pixel, windows)
            for k in slices:
                writer.add(draw_ring(random), patient=patient, volume=name, index=k)
    return path


def write_fakes(path, count=8, schema=RING, size=SIZE, seen=("r0", "r1"), lesions=True, first=0, of="s", **options):
    """Fakes of `count` seeds from `first` on, of the snapshot `of`; with lesions=False every other one has none."""
    random = np.random.RandomState(9 + first)
    with ArchiveWriter(path, schema, size, {}, seen=seen, **options) as writer:
        for seed in range(first, first + count):
            stored = draw_ring(random, schema, size, lesion=lesions or seed % 2 > 0)
            writer.add(stored, patient=f"generated-{seed}", seed=seed, snapshot=of)
    return path


def plain_dice(prediction, truth, classes) -> float:
    """The definition of Dice."""
    p, t = np.isin(prediction, classes), np.isin(truth, classes)
    return 1.0 if not p.any() and not t.any() else 2 * (p & t).sum() / (p.sum() + t.sum())


def run(*arguments) -> tuple[int, str]:
    """Exit code and output of python -m segmentation."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.output


def refused(*arguments) -> str:
    """The output of a command that must end with exit code 2 and one line."""
    code, output = run(*arguments)
    assert code == 2 and output.startswith("error: ") and output.count("\n") == 1, output
    return output

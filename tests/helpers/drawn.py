"""Data drawn for tests: heads as NIfTI files, and small archives of slices."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dnnlib.files import atomic_path
from slices.archive.format import Volume
from slices.archive.writer import ArchiveWriter
from slices.schema import BRATS, LesionClass, Schema

SHAPE = (60, 60, 10)  # voxels along L, P, S
SMALL = (24, 20, 16)
MARKER = (slice(42, 46), slice(12, 16), slice(3, 7))  # in voxels along L, P, S: the patient's left, in front
BRIGHT = 1500  # the marker's intensity, far above the rest


# --- heads, as volumes and as NIfTI files ---------------------------------------------------------------------------


def draw_head(seed=0):
    """Four contrasts int16 and a label map uint8 [L, P, S], in voxel axes to L, P, S: {contrast or 'seg': volume}."""
    rng = np.random.default_rng(seed)
    l, p, s = np.indices(SHAPE)
    inside = ((l - 30) / 22) ** 2 + ((p - 30) / 26) ** 2 + ((s - 4.5) / 6) ** 2 < 1
    inside &= ~((l < 16) & (p > 40))  # as no head is symmetric
    volumes = {}
    for n, contrast in enumerate(BRATS.contrasts):
        texture = rng.integers(0, 40, SHAPE)
        volumes[contrast] = np.where(inside, 200 + 100 * n + 3 * l + p + 5 * s + texture, 0).astype(np.int16)
        volumes[contrast][MARKER] = BRIGHT
    labels = np.zeros(SHAPE, np.uint8)
    labels[20:32, 30:44, 3:7] = 2
    labels[23:29, 33:41, 3:6] = 4
    labels[25:27, 35:38, 4:5] = 1
    return volumes | {"seg": labels}


def draw_small_head():
    """A head for many conversions at 16 pixels, as `draw_head` but [24, 20, 16]: {contrast or 'seg': volume}."""
    rng = np.random.default_rng(0)
    l, p, s = np.indices(SMALL)
    inside = ((l - 12) / 9) ** 2 + ((p - 10) / 8) ** 2 + ((s - 8) / 7) ** 2 < 1
    volumes = {}
    for n, contrast in enumerate(BRATS.contrasts):
        volumes[contrast] = np.where(inside, 200 + 50 * n + rng.integers(0, 300, SMALL), 0).astype(np.int16)
    labels = np.zeros(SMALL, np.uint8)
    labels[8:16, 6:14, 5:11], labels[10:14, 8:12, 6:10], labels[11:13, 9:11, 7:9] = 2, 4, 1
    return volumes | {"seg": labels}


# A letter is the direction in which an axis of the file runs: which of L, P, S it lies along, backwards or not, and
# the direction in the world of NIfTI, whose axes run to R, A, S.
DIRECTIONS = {
    "L": (0, 1, (-1, 0, 0)),
    "R": (0, -1, (1, 0, 0)),
    "P": (1, 1, (0, -1, 0)),
    "A": (1, -1, (0, 1, 0)),
    "S": (2, 1, (0, 0, 1)),
    "I": (2, -1, (0, 0, -1)),
}

# All 48 ways in which the axes of a file can run.
ALL_AXES = [
    "".join(letters) for order in itertools.permutations(("LR", "PA", "SI")) for letters in itertools.product(*order)
]


def turned(volume, axes, spacing=(1.0, 1.0, 1.0)):
    """A volume [L, P, S] as a file with other axes holds it, and that file's affine; spacing along L, P, S in mm."""
    affine = np.eye(4)
    for column, letter in enumerate(axes):
        along, step, world = DIRECTIONS[letter]
        volume = volume[tuple(slice(None, None, step) if a == along else slice(None) for a in range(3))]
        affine[:3, column] = np.array(world) * spacing[along]
    affine[:3, 3] = (11.0, -7.0, 3.5)  # where the volume lies is of no importance
    return volume.transpose([DIRECTIONS[letter][0] for letter in axes]), affine


def write_nifti(path, volume, affine=None, dtype=None):
    image = nib.Nifti1Image(np.asarray(volume, dtype), np.diag((-1.0, -1, 1, 1)) if affine is None else affine)
    image.header.set_slope_inter(1, 0)
    nib.save(image, path)


def write_case(parent, name="case1", volumes=None, axes="LPS", spacing=(1.0, 1.0, 1.0), suffix=".nii.gz"):
    """Write the files of a case below `parent`; the volumes are given in axes to L, P, S."""
    folder = parent / name
    folder.mkdir(parents=True)
    for kind, volume in (draw_head() if volumes is None else volumes).items():
        write_nifti(folder / f"{name}_{kind}{suffix}", *turned(volume, axes, spacing))
    return folder


# --- schemas, for tests that must hold for any ----------------------------------------------------------------------

NO_CLASSES = Schema(contrasts=("t1", "t2"))
ONE_CLASS = Schema(contrasts=("t1", "t2", "flair"), classes=(LesionClass("MS", "lesion", 1),))
SCHEMAS = pytest.mark.parametrize("schema", [BRATS, ONE_CLASS, NO_CLASSES], ids=["brats", "one class", "no classes"])


# --- slices, as archives ------------------------------------------------------------------------------------------


def draw_slice(
    random: np.random.RandomState, resolution: int, schema: Schema = BRATS, lesion: bool = True, empty: bool = False
) -> np.ndarray:
    """A gray ellipse as a head with nested discs as a lesion, stored uint8 [C + K, H, W]; `empty`: not even a head."""
    y, x = np.mgrid[:resolution, :resolution] / resolution - 0.5
    head = ((x / 0.38) ** 2 + (y / 0.45) ** 2 < 1) & (not empty)
    cx, cy, radius = random.uniform(-0.12, 0.12), random.uniform(-0.12, 0.12), random.uniform(0.14, 0.22)
    distance = np.hypot(x - cx, y - cy) / radius
    classes = np.zeros([resolution, resolution], np.uint8)
    # From the outermost class to the innermost: in BRATS edema, enhancing, necrosis; in others the first is innermost.
    order = [2, 3, 1] if len(schema.classes) == 3 else range(len(schema.classes), 0, -1)
    for ring, index in enumerate(order):
        classes[distance < 1 - ring / (len(schema.classes) or 1)] = index
    classes[~head | (not lesion)] = 0
    contrasts = []
    for contrast in range(schema.num_contrasts):
        brightness = np.array([110, *(60 + 50 * ((np.arange(len(schema.classes)) + contrast) % 4))])[classes]
        noisy = brightness + random.randn(resolution, resolution) * 8
        contrasts.append(np.where(head, noisy.clip(1, 255), 0).astype(np.uint8))
    return schema.join(np.stack(contrasts), classes)


def write_slices(path: Path, slices, schema: Schema = BRATS, part=None, **options) -> Path:
    """An archive of (patient, stored slice) in this order. options: of ArchiveWriter."""
    slices = list(slices)
    with ArchiveWriter(path, schema, slices[0][1].shape[-1], {"command": "test"}, **options) as archive:
        for patient, stored in slices:
            archive.add(stored, patient=patient, part=part)
    return path


def write_archive(
    path: Path, count=24, resolution=16, schema=BRATS, per_patient=3, seed=0, labels=False, part=None, seen=()
) -> Path:
    """An archive of `count` drawn slices; with labels, patients alternate between the classes HGG and LGG.

    part: of the split, that all patients are on. seen: as if a generator that learned from these had made the slices.
    """
    random = np.random.RandomState(seed)
    names = ("HGG", "LGG") if labels else None
    with ArchiveWriter(path, schema, resolution, made={"command": "test"}, label_names=names, seen=seen) as archive:
        for i in range(count):
            patient = i // per_patient
            archive.add(
                draw_slice(random, resolution, schema),
                patient=f"drawn{seed}-{patient}",
                part=part,
                index=i % per_patient,
                label=patient % 2 if labels else None,
            )
    return path


def write_full_archive(path: Path, count: int = 6) -> Path:
    """An archive of 16 pixels that uses every field of its index; two patients of three slices, cut and generated."""
    random = np.random.RandomState(0)
    affine = ((-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 7.5), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    made = {"version": "0", "command": "test", "options": {"fov": 200.0, "slices": "all"}, "split": None}
    windows = {name: (0.0, 100.5) for name in BRATS.contrasts}
    with (
        atomic_path(path) as place,
        ArchiveWriter(place, BRATS, 16, made, ("HGG", "LGG"), seen=("x", "y")) as writer,
    ):
        for n in range(count):
            name = f"patient{n % 2}"
            writer.volumes[name] = Volume(name, SMALL, affine, 1.0, windows)
            where = {"volume": name, "index": n} if n % 3 else {"seed": n, "snapshot": "s"}
            writer.add(draw_slice(random, 16), patient=name, part="train", label=n % 2, **where)
    return path

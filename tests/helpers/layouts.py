"""Drawn patients as files in the layouts of releases, and files of names alone."""

import json

import numpy as np

from helpers.drawn import draw_head, turned, write_case, write_nifti
from slices.convert.releases import describe_release
from slices.schema import BRATS

CONTRASTS = BRATS.contrasts
GLI = dict(zip(CONTRASTS, ("t1n", "t1c", "t2w", "t2f"), strict=True))
# Classes of the drawn label map, whose values are BraTS's of 2018: 1 necrosis, 2 edema, 4 enhancing tumor.
VALUES_OF = {"2023-gli": {1: 1, 2: 2, 4: 3}, "2024-gli": {1: 1, 2: 2, 4: 3}, "msd": {1: 2, 2: 1, 4: 3}}


def draw(seed=0, values=None):
    """A drawn patient whose label map has other values: {1: …, 2: …, 4: …}."""
    volumes = draw_head(seed)
    if values:
        volumes["seg"] = np.array([0, values[1], values[2], 0, values[4]], np.uint8)[volumes["seg"]]
    return volumes


def put(path, volume, axes="LPS"):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, *turned(volume, axes))


def write_flat(parent, name, volumes, join="_", names=None, suffix=".nii.gz"):
    for kind, volume in volumes.items():
        put(parent / name / f"{name}{join}{(names or {}).get(kind, kind)}{suffix}", volume)


def write_decathlon(source, count=2, order=("flair", "t1", "t1ce", "t2")):
    modality = {str(i): {"flair": "FLAIR", "t1": "T1w", "t1ce": "t1gd", "t2": "T2w"}[c] for i, c in enumerate(order)}
    for n in range(1, count + 1):
        volumes = draw(n, VALUES_OF["msd"])
        image, affine = turned(volumes["seg"], "RAS")
        channels = np.stack([turned(volumes[contrast], "RAS")[0] for contrast in order], axis=-1)
        for folder, array in (("imagesTr", channels), ("labelsTr", image)):
            (source / folder).mkdir(parents=True, exist_ok=True)
            write_nifti(source / folder / f"BRATS_{n:03d}.nii.gz", array, affine)
            (source / folder / f"._BRATS_{n:03d}.nii.gz").write_bytes(b"a resource fork of macOS")
    (source / "dataset.json").write_text(json.dumps({"modality": modality}))


def write_release(source, name):
    """Two drawn patients in the layout and with the names and label values of a release."""
    two = [draw(n, VALUES_OF.get(name)) for n in (1, 2)]
    if name == "msd":
        write_decathlon(source)
    elif name.endswith("-gli"):
        for n, volumes in enumerate(two):
            write_flat(source, f"BraTS-GLI-0000{n}-000", volumes, "-", GLI)
    elif name in ("2020", "2021"):
        for n, volumes in enumerate(two, start=1):
            case = f"BraTS20_Training_00{n}" if name == "2020" else f"BraTS2021_0000{n}"
            write_flat(source, case, volumes, suffix=".nii" if name == "2020" else ".nii.gz")
    else:
        prefix = {"2017": "Brats17_TCIA", "2018": "Brats18_CBICA", "2019": "BraTS19_2013", "phantom": "Phantom000"}[
            name
        ]
        for n, (grade, volumes) in enumerate(zip(("HGG", "LGG"), two, strict=True)):
            write_flat(source / grade, f"{prefix}_{n}_1", volumes)
        (source / "survival_data.csv").write_text("stray")
        (source / "name_mapping.csv").write_text("stray")


def break_file(path):
    path.write_bytes(path.read_bytes()[:2000])


def touch(folder, *names):
    """Empty files: enough for everything that goes by names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def flat(case, kinds=(*CONTRASTS, "seg"), ending=".nii.gz", join="_"):
    return [f"{case}/{case.split('/')[-1]}{join}{kind}{ending}" for kind in kinds]


def gli(case):
    return flat(case, ("t1n", "t1c", "t2w", "t2f", "seg"), join="-")


def own(pattern, contrasts="t1", labels=None, masks=None):
    """Data that a user describes."""
    return describe_release(contrasts, pattern, labels, masks)


def named(found):
    """(case, patient) of what was found."""
    return [(case.name, case.patient) for case in found.cases]


def truncate(path):
    path.write_bytes(path.read_bytes()[:3000])


def write_five_patients(source):
    """Patients P0 to P4 in graded folders, two of them low-grade; P2 has no lesion."""
    for n, parent in enumerate(("HGG", "HGG", "HGG", "LGG", "LGG")):
        volumes = draw_head(seed=n)
        volumes["seg"] = np.roll(volumes["seg"], n, axis=0)
        if n == 2:
            volumes["seg"][:] = 0
        write_case(source / parent, f"P{n}", volumes)
    (source / "survival_data.csv").write_text("stray")
    return source

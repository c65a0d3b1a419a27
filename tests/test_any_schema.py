"""From NIfTI to Dice with other contrasts and classes than BraTS's: everything downstream learns them from the data."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import dataset_tool
import generate
import segmentation.__main__
import train
from helpers.commands import call as call_command
from helpers.drawn import draw_head, turned, write_nifti
from slices.archive.reader import ArchiveReader

SMALL = ("--kimg", 0.016, "--batch", 4, "--cbase", 256, "--cmax", 8, "--z-dim", 8, "--snap", 0, "--fp32", 1)


def call(command, *arguments, expected=0):
    return call_command(*arguments, expected=expected, command=command)


def write_cases(folder, contrasts, classes):
    """Write three cases of these numbers of contrasts c0, c1, … and lesion classes l0, l1, …

    Returns the options that describe them.
    """
    names = [f"c{n}" for n in range(contrasts)]
    for case in ("a", "b", "c"):
        drawn = draw_head(ord(case))
        mask = np.zeros_like(drawn["seg"])
        for k in range(classes):
            mask[20 + k, 25:45, 3:7] = k + 1
        volumes = {name: drawn["t1"] + 9 * n for n, name in enumerate(names)} | {"seg": mask}
        for kind, volume in volumes.items():
            write_nifti(folder / f"{case}_{kind}.nii.gz", *turned(volume, "RAS"))
    labels = ["--labels", ",".join(f"l{k}={k + 1}" for k in range(classes))] if classes else []
    regions = ["--regions", "whole=" + "+".join(f"l{k}" for k in range(classes))] if classes > 1 else []
    return "--contrasts", ",".join(names), *labels, *regions, "--pattern", "{case}_{contrast}.nii.gz"


def generate_and_check(real, test, folder, contrasts, maps):
    """Train a GAN on the real slices, and return an archive of its fakes."""
    call(train.main, "--outdir", folder / "runs", "--data", real, "--exclude", test, *SMALL)
    (run,) = (folder / "runs").iterdir()
    call(generate.main, "--network", run, "--seeds", "0-2", "--outdir", folder / "panels")
    assert Image.open(folder / "panels" / "contact_sheet.png").width > 64 * contrasts
    call(generate.main, "--network", run, "--seeds", "0-5", "--dest", folder / "fake.zip")
    fake = ArchiveReader(folder / "fake.zip")
    assert fake.schema == ArchiveReader(real).schema and len(fake.info.seen) == 2
    assert fake.read_checked(0).shape == (contrasts + maps, 64, 64)
    call(dataset_tool.main, "inspect", folder / "fake.zip", "--out", folder / "fake.png")
    return folder / "fake.zip"


@pytest.mark.slow
@pytest.mark.parametrize("contrasts, classes", [(1, 0), (1, 1), (3, 2), (16, 15)])
def test_the_whole_way(tmp_path, contrasts, classes):
    described = write_cases(tmp_path, contrasts, classes)
    options = ("--resolution", 64, "--workers", 1)
    call(dataset_tool.main, "convert", "--source", tmp_path, "--dest", tmp_path / "data", *described, *options)
    real, test = tmp_path / "data" / "train.zip", tmp_path / "data" / "test.zip"
    maps = classes + 1 if classes else 0
    assert ArchiveReader(real).schema.num_channels == contrasts + maps
    fake = generate_and_check(real, test, tmp_path, contrasts, maps)

    call(dataset_tool.main, "export", test, "--dest", tmp_path / "volumes", "--format", "nifti")
    (case,) = (tmp_path / "volumes").iterdir()
    assert nib.load(case / f"{case.name}_c0.nii.gz").shape == (60, 60, 10)
    assert (case / f"{case.name}_seg.nii.gz").exists() == bool(classes)

    unet, judge = tmp_path / "unet", segmentation.__main__.main
    small = ("--steps", 3, "--batch", 4, "--width", 2)
    train_unet = ("train", "--data", real, "--data", fake, "--exclude", test, *small, "--outdir", unet)
    if not classes:
        assert "no lesion classes" in call(judge, *train_unet, expected=2)
        return
    call(judge, *train_unet)
    call(judge, "evaluate", "--model", unet, "--data", test, "--outdir", unet)
    results = json.loads((unet / "results.json").read_text())
    assert list(results["labels"]) == [f"l{k}" for k in range(classes)]
    assert list(results["regions"]) == (["whole"] if classes > 1 else [])

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
from commands import call as call_command
from drawn import draw_head, turned, write_nifti
from slices.archive.reader import ArchiveReader

SMALL = ("--kimg", 0.016, "--batch", 4, "--cbase", 256, "--cmax", 8, "--z-dim", 8, "--snap", 0, "--fp32", 1)


def call(command, *arguments, expected=0):
    return call_command(*arguments, expected=expected, command=command)


@pytest.mark.slow
@pytest.mark.parametrize("contrasts, classes", [(1, 0), (1, 1), (3, 2), (16, 15)])
def test_the_whole_way(tmp_path, contrasts, classes):
    names = [f"c{n}" for n in range(contrasts)]
    for case in ("a", "b", "c"):
        drawn = draw_head(ord(case))
        mask = np.zeros_like(drawn["seg"])
        for k in range(classes):
            mask[20 + k, 25:45, 3:7] = k + 1
        volumes = {name: drawn["t1"] + 9 * n for n, name in enumerate(names)} | {"seg": mask}
        for kind, volume in volumes.items():
            write_nifti(tmp_path / f"{case}_{kind}.nii.gz", *turned(volume, "RAS"))
    labels = ["--labels", ",".join(f"l{k}={k + 1}" for k in range(classes))] if classes else []
    regions = ["--regions", "whole=" + "+".join(f"l{k}" for k in range(classes))] if classes > 1 else []
    described = ("--contrasts", ",".join(names), *labels, *regions, "--pattern", "{case}_{contrast}.nii.gz")
    options = ("--resolution", 64, "--workers", 1)
    call(dataset_tool.main, "convert", "--source", tmp_path, "--dest", tmp_path / "data", *described, *options)
    real, test = tmp_path / "data" / "train.zip", tmp_path / "data" / "test.zip"
    maps = classes + 1 if classes else 0
    assert ArchiveReader(real).schema.num_channels == contrasts + maps

    call(train.main, "--outdir", tmp_path / "runs", "--data", real, "--exclude", test, *SMALL)
    (run,) = (tmp_path / "runs").iterdir()
    call(generate.main, "--network", run, "--seeds", "0-2", "--outdir", tmp_path / "panels")
    assert Image.open(tmp_path / "panels" / "contact_sheet.png").width > 64 * contrasts
    call(generate.main, "--network", run, "--seeds", "0-5", "--dest", tmp_path / "fake.zip")
    fake = ArchiveReader(tmp_path / "fake.zip")
    assert fake.schema == ArchiveReader(real).schema and len(fake.info.seen) == 2
    assert fake.read_checked(0).shape == (contrasts + maps, 64, 64)
    call(dataset_tool.main, "inspect", tmp_path / "fake.zip", "--out", tmp_path / "fake.png")
    call(dataset_tool.main, "export", test, "--dest", tmp_path / "volumes", "--format", "nifti")
    (case,) = (tmp_path / "volumes").iterdir()
    assert nib.load(case / f"{case.name}_c0.nii.gz").shape == (60, 60, 10)
    assert (case / f"{case.name}_seg.nii.gz").exists() == bool(classes)

    unet = (
        "--data",
        real,
        "--data",
        tmp_path / "fake.zip",
        "--exclude",
        test,
        "--steps",
        3,
        "--batch",
        4,
        "--width",
        2,
    )
    if not classes:
        output = call(segmentation.__main__.main, "train", *unet, "--outdir", tmp_path / "unet", expected=2)
        assert "no lesion classes" in output
        return
    call(segmentation.__main__.main, "train", *unet, "--outdir", tmp_path / "unet")
    call(
        segmentation.__main__.main,
        "evaluate",
        "--model",
        tmp_path / "unet",
        "--data",
        test,
        "--outdir",
        tmp_path / "unet",
    )
    results = json.loads((tmp_path / "unet" / "results.json").read_text())
    assert list(results["labels"]) == [f"l{k}" for k in range(classes)]
    assert list(results["regions"]) == (["whole"] if classes > 1 else [])

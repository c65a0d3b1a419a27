"""Fixtures of the tests of segmentation: archives, U-Nets and evaluations, made once for all tests."""

from pathlib import Path

import numpy as np
import pytest

import generate
import train as gan
from helpers.commands import call
from helpers.studies import make_study
from rings import RING, draw_ring, write_patients, write_rings
from segmentation.config import TrainUNetConfig
from segmentation.evaluate import evaluate_archive
from segmentation.fit import TrainRecord, train_unet
from segmentation.page.page import make_report
from segmentation.results import to_csv
from segmentation.scores import Evaluation
from segmentation.study import Study


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("segmentation")


@pytest.fixture(scope="session")
def train_zip(folder) -> Path:
    """Twelve patients of four slices; the first slice of each has no lesion."""
    random = np.random.RandomState(1)
    slices = ((f"p{i // 4}", draw_ring(random, lesion=i % 4 > 0)) for i in range(48))
    return write_rings(folder / "train.zip", slices)


@pytest.fixture(scope="session")
def test_zip(folder) -> Path:
    """Four patients with six slices each, two of them empty, in turns. The last patient has no lesion."""
    random = np.random.RandomState(2)
    slices = []
    for s in range(6):
        for patient in ("a", "b", "c", "d"):
            slices.append((patient, draw_ring(random, lesion=patient != "d" and s < 3, empty=s in (0, 5))))
    return write_rings(folder / "test.zip", slices)


@pytest.fixture(scope="session")
def trained(folder, train_zip) -> TrainRecord:
    config = TrainUNetConfig(steps=120, batch=8, lr=0.02, width=4, augment="flip")
    return train_unet(config, [train_zip], folder / "trained")


@pytest.fixture(scope="session")
def evaluated(folder, trained, test_zip) -> Evaluation:
    return evaluate_archive(trained.model, test_zip, folder / "evaluated")


@pytest.fixture(scope="session")
def fake_zip(folder) -> Path:
    """Fakes of a GAN that learned from the patients r0 to r4: seeds 0 to 3, and in o.zip seeds 4 to 7."""
    real = write_patients(folder / "real.zip", [f"r{i}" for i in range(5)], part="train")
    options = ["--kimg=0.004", "--batch=4", "--cbase=64", "--cmax=4", "--z-dim=4", "--map-depth=1", "--workers=0"]
    call("--data", real, "--outdir", folder / "gan", *options, command=gan.main)
    network = folder / "gan/00000-real-auto-batch4"
    for seeds, name in (("0-3", "f.zip"), ("4-7", "o.zip")):
        call("--network", network, f"--seeds={seeds}", "--dest", folder / name, command=generate.main)
    return folder / "f.zip"


@pytest.fixture(scope="session")
def study(folder) -> Study:
    """Table 1 on four patients, whose first one has a name like a program; see make_study."""
    return make_study(folder / "study", RING, ["<script>alert(1)", "b", "c", "d"])


@pytest.fixture(scope="session")
def reported(study) -> dict[str, bytes]:
    """The files of its report."""
    return make_report([study], {"results.csv": to_csv(study.rows), "results.json": b"{}"})

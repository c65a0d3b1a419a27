"""Validation patients: a curve of Dice beside the loss."""

import json

import pytest

from rings import TINY, refused, run, write_patients
from segmentation.config import TrainUNetConfig
from segmentation.evaluate import evaluate_archive
from segmentation.fit import train_unet


def test_the_curve_of_validation_ends_with_the_dice_of_the_trained_unet(tmp_path, train_zip, test_zip):
    config = TrainUNetConfig(steps=45, batch=4, lr=0.02, width=2)
    trained = train_unet(config, [train_zip], tmp_path / "with", val=test_zip)
    points = [(point.step, point.val) for point in trained.curve if point.val is not None]
    assert [step for step, _ in points] == [*range(4, 45, 4), 45]
    content = json.loads((tmp_path / "with" / "training.json").read_text())
    assert [point for point in content["curve"] if "val" in point] == [
        {"step": point.step, "loss": point.loss, "val": point.val} for point in trained.curve if point.val is not None
    ]
    dice = evaluate_archive(trained.model, test_zip, tmp_path / "test").regions["whole"].mean
    assert points[-1] == (45, pytest.approx(dice, abs=1e-12))
    assert "validation Dice" in (tmp_path / "with" / "log.txt").read_text()


def test_validation_changes_nothing_but_the_curve(tmp_path, train_zip, test_zip):
    config = TrainUNetConfig(steps=12, batch=4, lr=0.02, width=2)
    seen = train_unet(config, [train_zip], tmp_path / "with", val=test_zip)
    blind = train_unet(config, [train_zip], tmp_path / "without")
    names = ("with", "without")
    first, second = ((tmp_path / name / "unet.safetensors").read_bytes() for name in names)
    assert first == second and [p.loss for p in seen.curve] == [p.loss for p in blind.curve]
    assert all(point.val is None for point in blind.curve)


def test_validation_patients_that_are_learned_from_are_refused(tmp_path, train_zip, fake_zip):
    strange = write_patients(tmp_path / "strange.zip", ["v"], part="test")
    known = write_patients(tmp_path / "known.zip", ["v", "p3"])
    behind = write_patients(tmp_path / "behind.zip", ["v", "r1"])

    def train(data, val):
        return refused("train", "--data", data, "--val", val, "--outdir", tmp_path / "new", *TINY)

    assert "are of the test part" in train(train_zip, strange)
    assert "known.zip: the U-Net would learn from slices of p3" in train(train_zip, known)
    assert "a GAN that learned from r1" in train(fake_zip, behind)
    assert "share the patients v; give patients that are in neither training nor test" in refused(
        "train", "--data", train_zip, "--exclude", strange, "--val", known, "--outdir", tmp_path / "new", *TINY
    )
    assert "no such file" in train(train_zip, tmp_path / "none.zip") and not (tmp_path / "new").exists()
    code, output = run("train", "--data", train_zip, "--val", behind, "--outdir", tmp_path / "new", *TINY)
    assert code == 0 and "validation Dice" in output

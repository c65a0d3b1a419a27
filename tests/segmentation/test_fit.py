"""The training of one U-Net."""

import json

import monai
import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from dnnlib.files import sha256
from segmentation import fit
from segmentation.config import TrainUNetConfig
from segmentation.fit import MODEL, RECORD, train_unet
from segmentation.optimizer import segmentation_loss
from segmentation.unet import KIND, VERSION
from torch_utils import checkpoint


def test_a_small_unet_learns_a_visible_lesion(trained, evaluated):
    lesioned = [p for p in evaluated.examinations if p.patient != "d"]
    assert min(p.regions["whole"].dice for p in lesioned) > 0.8
    assert min(p.labels["rim"].dice for p in lesioned) > 0.7
    assert trained.curve[-1].loss < 0.3 * trained.curve[0].loss
    assert trained.curve[-1].step == 120


def test_training_leaves_the_model_its_record_and_its_log(trained, train_zip, folder):
    record = json.loads((folder / "trained" / "training.json").read_text())
    assert record["unet"]["training"]["steps"] == 120
    assert record["unet"]["archives"] == [
        {"file": "train.zip", "sha256": sha256(train_zip), "slices": 48, "patients": 12, "examinations": 12}
        | {"pixel": None, "unmeasured": 48, "remarks": []}
    ]
    assert record["unet"]["training"]["empty"] == 0.05 and record["unet"]["training"]["lesion_free"] is None
    assert record["unet"]["drawn"] == {"with_lesion": 684, "lesion_free": 228, "empty": 48}, "19 times each of 48"
    assert [point["step"] for point in record["curve"]] == list(range(1, 121))
    assert record["libraries"] == f"PyTorch {torch.__version__}, MONAI {monai.__version__}"
    assert "step    120 of 120" in (folder / "trained" / "log.txt").read_text()
    assert sorted(p.name for p in (folder / "trained").iterdir()) == ["log.txt", "training.json", "unet.safetensors"]


def test_the_seed_alone_decides_the_result(tmp_path, train_zip):
    def run(name, seed, before):
        torch.manual_seed(before)
        train_unet(TrainUNetConfig(steps=3, batch=4, width=2, seed=seed), [train_zip], tmp_path / name)
        return checkpoint.load(tmp_path / name / MODEL, KIND, VERSION).tensors

    first, again, other = run("first", 5, before=0), run("again", 5, before=1), run("other", 6, before=0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (tmp_path / "first" / MODEL).read_bytes() == (tmp_path / "again" / MODEL).read_bytes()
    assert not torch.equal(first["final_conv.weight"], other["final_conv.weight"])


def test_training_does_not_disturb_the_callers_random_numbers(tmp_path, train_zip):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    train_unet(TrainUNetConfig(steps=1, batch=2, width=2), [train_zip], tmp_path)
    assert torch.equal(torch.rand(4), expected)


def test_an_interrupted_training_leaves_no_model_and_keeps_the_old_one(tmp_path, train_zip, monkeypatch):
    config = TrainUNetConfig(steps=1, batch=2, width=2)
    train_unet(config, [train_zip], tmp_path / "old")
    before = (tmp_path / "old" / MODEL).read_bytes()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "_optimize", interrupted)
    for name in ("new", "old"):
        with pytest.raises(KeyboardInterrupt):
            train_unet(config, [train_zip], tmp_path / name, force=True)
    assert not (tmp_path / "new" / MODEL).exists() and not (tmp_path / "new" / RECORD).exists()
    assert (tmp_path / "old" / MODEL).read_bytes() == before


def test_a_model_that_appears_meanwhile_stays_and_keeps_its_record(tmp_path, train_zip, monkeypatch):
    def meanwhile(*_):
        (tmp_path / "unet.safetensors").write_text("another's")
        return ()

    monkeypatch.setattr(fit, "_optimize", meanwhile)
    with pytest.raises(UserError, match="unet.safetensors has appeared while its content was made"):
        train_unet(TrainUNetConfig(steps=1, batch=2, width=2), [train_zip], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "unet.safetensors"]
    assert (tmp_path / "unet.safetensors").read_text() == "another's"


def test_a_loss_that_runs_off_is_reported(tmp_path, train_zip):
    with pytest.raises(UserError, match="smaller --lr"):
        train_unet(TrainUNetConfig(steps=6, batch=4, width=2, lr=1e30), [train_zip], tmp_path)
    assert not (tmp_path / MODEL).exists()


def test_the_learning_rate_falls_along_a_cosine(tmp_path, train_zip, monkeypatch):
    rates, step = [], torch.optim.Adam.step

    def recorded(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    train_unet(TrainUNetConfig(steps=5, batch=2, width=2, lr=0.01), [train_zip], tmp_path)
    assert rates == pytest.approx([0.005 * (1 + np.cos(np.pi * k / 5)) for k in range(5)])


def test_the_loss_is_dice_of_the_lesions_plus_cross_entropy_of_all_classes():
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(2, 3, 8, 8)), rng.integers(0, 3, (2, 8, 8))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    one_hot = np.moveaxis(np.eye(3)[truth], -1, 1)
    cross_entropy = -(one_hot * np.log(p)).sum(axis=1).mean()
    soft = 2 * (p * one_hot).sum(axis=(0, 2, 3)) / (p.sum(axis=(0, 2, 3)) + one_hot.sum(axis=(0, 2, 3)))
    expected = cross_entropy + 1 - soft[1:].mean()
    found = segmentation_loss()(torch.from_numpy(logits), torch.from_numpy(truth)[:, None])
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_workers_augment_beside_a_gpu_only(monkeypatch):
    full, flip = (TrainUNetConfig(steps=1, augment=augment) for augment in ("full", "flip"))
    for device, expected in [("cpu", (None, None)), ("cuda", (0, None))]:
        monkeypatch.setattr(fit, "default_device", lambda device=device: torch.device(device))
        assert (fit._memory_for(full), fit._memory_for(flip)) == expected

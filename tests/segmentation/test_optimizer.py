"""Steps of a U-Net's training: averaged weights and mixed precision."""

import json

import pytest
import torch

from rings import refused
from segmentation import fit
from segmentation.config import TrainUNetConfig, UNetConfig
from segmentation.fit import MODEL, train_unet
from segmentation.optimizer import Optimizer, half_precision
from segmentation.unet import KIND, VERSION, build_unet
from torch_utils import checkpoint


@pytest.mark.parametrize(("share", "averaged"), [(0, 1), (0.01, 1), (0.5, 3), (1, 6)])
def test_the_saved_weights_are_the_mean_over_the_last_steps(tmp_path, train_zip, monkeypatch, share, averaged):
    seen: list[dict[str, torch.Tensor]] = []
    step = Optimizer.step

    def noted(self, *batch):
        loss = step(self, *batch)
        seen.append({name: p.detach().double().clone() for name, p in self.network.named_parameters()})
        return loss

    monkeypatch.setattr(Optimizer, "step", noted)
    config = TrainUNetConfig(steps=6, batch=2, width=2, lr=0.02, average=share)
    train_unet(config, [train_zip], tmp_path)
    saved = checkpoint.load(tmp_path / MODEL, KIND, VERSION).tensors
    assert set(saved) == set(seen[0]) and len(seen) == 6
    for name, weight in saved.items():
        expected = sum(weights[name] for weights in seen[-averaged:]) / averaged
        torch.testing.assert_close(weight.double(), expected, rtol=0, atol=1e-6 if averaged > 1 else 0)
    assert json.loads((tmp_path / "training.json").read_text())["unet"]["training"]["average"] == share


def test_a_share_of_steps_to_average_is_at_most_all(tmp_path, train_zip):
    options = ("--data", train_zip, "--outdir", tmp_path, "--steps", 1)
    assert "--average" in refused("train", *options, "--average", 1.5)


def rings(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and truth: a bright square in each, of class 1."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
    for one, (row, column) in zip(truth, torch.randint(20, [4, 2], generator=random).tolist(), strict=True):
        one[0, row : row + 12, column : column + 12] = 1
    return truth - 0.5 + 0.1 * torch.randn(4, 1, 32, 32, generator=random), truth


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_mixed_precision_learns_about_the_same(half):
    """On a CPU, where autocast knows both types: the code is that for a GPU."""
    curves = []
    for precision in (None, half):
        network = build_unet(UNetConfig(1, 2, 4), seed=0).train()
        optimizer = Optimizer(network, TrainUNetConfig(steps=20, batch=4, width=4, lr=0.01), precision)
        curves.append([optimizer.step(*rings(step)).item() for step in range(20)])
        optimizer.finish()
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in network.parameters())
    single, mixed = (torch.tensor(curve) for curve in curves)
    assert mixed.isfinite().all() and 0 < (mixed[0] - single[0]).abs() < 0.02
    assert mixed[-1] < 0.7 * mixed[0] and (mixed[-1] - single[-1]).abs() < 0.1


def test_a_cpu_computes_in_single_precision(tmp_path, train_zip, monkeypatch):
    assert half_precision(torch.device("cpu")) is None
    for supported, half in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, answer=supported: answer)
        assert half_precision(torch.device("cuda")) is half


def test_the_log_names_the_type(tmp_path, train_zip, monkeypatch):
    monkeypatch.setattr(fit, "half_precision", lambda _: torch.bfloat16)
    train_unet(TrainUNetConfig(steps=2, batch=2, width=2), [train_zip], tmp_path)
    assert "on cpu in bfloat16 where autocast allows it" in (tmp_path / "log.txt").read_text()

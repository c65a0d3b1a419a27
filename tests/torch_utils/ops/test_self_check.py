"""`python -m torch_utils.ops`: what it says of right and of wrong operators."""

import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import torch_utils.ops.__main__ as self_check
from torch_utils.ops import build, native


@pytest.mark.parametrize("fault", [0, 1e-3, math.nan])
def test_self_check_tells_right_from_wrong(monkeypatch, fault):
    right = self_check.bias_act

    def bias_act(*arguments, **options):
        asked = native.available("cpu")
        with native.reference_only():
            y = right(*arguments, **options)
        return y * (1 + fault) if asked else y

    monkeypatch.setattr(build, "LIBRARIES", {"cpu": None})
    monkeypatch.setattr(native, "_statuses", {"cpu": native.Status(file=Path("native.so"), tools=("a compiler",))})
    monkeypatch.setattr(self_check, "bias_act", bias_act)
    monkeypatch.setattr(self_check, "OPERATORS", {"bias_act": self_check.OPERATORS["bias_act"]})
    monkeypatch.setattr(self_check, "TOLERANCES", {torch.float32: 1e-5})
    result = CliRunner().invoke(self_check.main)
    assert result.exit_code == (1 if fault else 0), result.output
    assert ("FAILED: bias_act on cpu, torch.float32, act=linear" in result.output) == bool(fault)


def test_self_check_passes_over_devices_without_native_operators(monkeypatch):
    monkeypatch.setattr(native, "_statuses", {})
    monkeypatch.setenv(native.SWITCH, "reference")
    result = CliRunner().invoke(self_check.main)
    assert result.exit_code == 0 and result.output.count("plain PyTorch serves") == 2

"""`python -m torch_utils.ops`: its output for right and for wrong operators."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import torch_utils.ops.__main__ as self_check
from helpers.commands import ROOT
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
    assert result.exit_code == 0 and result.output.count("plain PyTorch, as there are no") == 2


@pytest.mark.slow
def test_cpu_operators_pass():
    """With the library that all tests share, and whose key says that it is built from these sources."""
    if not native.available("cpu"):
        pytest.skip(f"no native operators: {native.status('cpu').error}")
    command = [sys.executable, "-m", "torch_utils.ops"]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {native.SWITCH: ""}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    for operator in ("bias_act", "synthesis_tail", "upfirdn2d"):
        assert re.search(rf"^{operator} +cpu .* OK$", run.stdout, re.MULTILINE), run.stdout

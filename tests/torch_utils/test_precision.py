"""TF32 only where it is asked for, without warnings of PyTorch."""

import subprocess
import sys

import pytest
import torch

from helpers.commands import ROOT

CODE = """
import torch
from torch_utils.precision import set_precision
for tf32 in (False, True, False):
    set_precision(tf32, benchmark=tf32)
    print(torch.backends.cudnn.benchmark, {})
"""
NEW = "torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision"
OLD = "torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32"


def test_tf32_is_off_unless_asked_for():
    """In a process of its own, as PyTorch refuses a mixture of old and new settings."""
    is_new = hasattr(torch.backends.cuda.matmul, "fp32_precision")
    command = [sys.executable, "-W", "error", "-c", CODE.format(NEW if is_new else OLD)]
    output = subprocess.check_output(command, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    off, on = ("ieee", "tf32") if is_new else (False, True)
    assert output == "".join(f"{is_on} {v} {v}\n" for is_on, v in ((False, off), (True, on), (False, off)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_float32_means_float32_on_a_gpu():
    code = """
import torch
from torch_utils.precision import set_precision
x, w = (torch.rand(s, dtype=torch.float64, device="cuda") for s in ((4, 64, 64, 64), (64, 64, 3, 3)))
exact = torch.nn.functional.conv2d(x, w)
for tf32 in (False, True):
    set_precision(tf32, benchmark=False)
    print(((torch.nn.functional.conv2d(x.float(), w.float()) - exact).abs().max() / exact.abs().max()).item())
"""
    output = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    precise, _ = map(float, output.split())
    assert precise < 1e-5


def test_the_old_settings_can_still_be_read():
    """Libraries in the same process may do so; PyTorch refuses if convolutions and recurrent networks differ."""
    code = """
import torch
from torch_utils.precision import set_precision
set_precision(tf32=False, benchmark=False)
with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
    print(torch.backends.cudnn.allow_tf32)
set_precision(tf32=True, benchmark=False)
print(torch.backends.cudnn.allow_tf32)
"""
    output = subprocess.check_output([sys.executable, "-c", code], stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    assert [line for line in output.splitlines() if line in ("True", "False")] == ["False", "True"], output

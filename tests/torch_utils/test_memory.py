"""Out-of-memory errors of every kind become one message that says which option to lower."""

import errno

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import train
from dnnlib.errors import Failure
from torch_utils.memory import naming_what_to_lower
from training.loss import Loss

OF_GPU = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.00 GiB is"


def fail(error):
    raise error


@pytest.mark.parametrize(
    "ask, words",
    [
        (lambda: torch.zeros(1 << 50, dtype=torch.uint8), r"^out of memory \(1.05e\+06 GiB more .*\): lower --x$"),
        (lambda: np.zeros(1 << 50), r"^out of memory \(8.00 PiB more were asked for; .*\): lower --x$"),
        (lambda: bytearray(1 << 60), r"^out of memory \(this process used [\d.]+ [GM]iB at its peak\): lower --x$"),
        (
            lambda: fail(OSError(errno.ENOMEM, "Cannot allocate memory")),
            r"^out of memory \(this process used [\d.]+ [GM]iB at its peak\): lower --x$",
        ),
        (
            lambda: fail(RuntimeError("std::bad_alloc")),
            r"^out of memory \(this process used [\d.]+ [GM]iB at its peak\): lower --x$",
        ),
        (
            lambda: fail(RuntimeError("could not create a primitive")),
            r"^out of memory \(this process used [\d.]+ [GM]iB at its peak\): lower --x$",
        ),
        (
            lambda: fail(torch.OutOfMemoryError(OF_GPU)),
            r"^out of GPU memory \(2.00 GiB .*; the GPU has 79.11 GiB; .*\): ",
        ),
        (
            lambda: fail(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
            r"^out of GPU memory \(this process used .*\): lower --x$",
        ),
        (
            lambda: fail(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")),
            r"^out of GPU memory \(this process used .*\): lower",
        ),
        (
            lambda: fail(ImportError("libtorch.so: failed to map segment from shared object")),
            "to load the program's libraries",
        ),
    ],
)
def test_no_memory_left(ask, words):
    with pytest.raises(Failure, match=words), naming_what_to_lower("--x"):
        ask()


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), OSError(errno.ENOSPC, "No space"), ImportError("no x")]
)
def test_other_failures_pass(error):
    with pytest.raises(type(error)), naming_what_to_lower("--x"):
        raise error


@pytest.mark.parametrize(
    "batch, words", [(4, "--batch-gpu, --batch, --cbase or --cmax"), (16, "--batch-gpu to 8, or ")]
)
def test_training_without_memory_names_what_to_lower(tmp_path, archive, monkeypatch, batch, words):
    """Half a part, if the groups of the minibatch standard deviation fit into it: then the run can go on with it."""
    monkeypatch.setattr(Loss, "discriminator_r1", lambda *_: torch.zeros(1 << 50))
    options = [f"--outdir={tmp_path}", f"--data={archive}", f"--batch={batch}", "--cbase=64", "--workers=0"]
    result = CliRunner().invoke(train.main, options)
    assert result.exit_code == 1, result.output
    line, advice = result.stderr.splitlines()
    assert "more were asked for" in line and f"peak): lower {words}" in line
    assert advice == f"Continue with: python train.py --resume={tmp_path}/00000-drawn-auto-batch{batch}"

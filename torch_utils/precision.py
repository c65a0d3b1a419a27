"""How exactly a device computes, and whether cuDNN looks for the fastest algorithm."""

from __future__ import annotations

import warnings

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device can train in bfloat16. CPUs can, and GPUs of compute capability 8.0 or more."""
    if device.type != "cuda":
        return True
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def set_precision(tf32: bool, benchmark: bool) -> None:
    """Choose between float32 and TF32 in matrix products and convolutions of float32 tensors on a GPU.

    PyTorch's own default is TF32 in convolutions. TF32 rounds factors to 10 bits.
    benchmark: whether cuDNN tries its algorithms for each new shape. This takes memory.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn.benchmark = benchmark
    with warnings.catch_warnings():
        # PyTorch 2.9 renamed these settings, and warns of the old ones. Both are set: it refuses to read the old ones,
        # as other libraries in this process may do, where they differ from the new.
        warnings.simplefilter("ignore")
        matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    for place in (matmul, getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None)):
        if hasattr(place, "fp32_precision"):
            place.fp32_precision = "tf32" if tf32 else "ieee"  # type: ignore[union-attr]

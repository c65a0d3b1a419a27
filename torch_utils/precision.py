"""How exactly a GPU multiplies, and whether cuDNN looks for the fastest algorithm."""

from __future__ import annotations

import torch


def set_precision(tf32: bool, benchmark: bool) -> None:
    """Choose between float32 and TF32 in matrix products and convolutions of float32 tensors on a GPU.

    PyTorch's own default is TF32 in convolutions. TF32 rounds factors to 10 bits.
    benchmark: whether cuDNN tries its algorithms for each new shape. This takes memory.
    """
    torch.backends.cudnn.benchmark = benchmark
    # PyTorch 2.9 renamed these settings, and warns of the old ones.
    new = [torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None)]
    if all(hasattr(place, "fp32_precision") for place in new):
        for place in new:
            place.fp32_precision = "tf32" if tf32 else "ieee"  # type: ignore[union-attr]
    else:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32

"""The three faces of an operator: the reference, the native CPU one, the native CUDA one."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from torch_utils.ops import native


@contextmanager
def native_operators(device: str) -> Iterator[None]:
    """New tensors are on this device, which has native operators; if it has none, the test is skipped."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if not native.available(device):
        pytest.skip(f"no native operators: {native.status(device).error}")
    # Convolutions round to 10 bits on a GPU unless told not to.
    with torch.device(device), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield

"""Golden arrays: what the published implementation computed on small random inputs."""

import json
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent.parent / "golden"


def golden_arrays(name: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """Arrays that the published implementation computed, as tensors on the default device.

    prefix: of the names wanted; it is taken off.
    """
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {k.removeprefix(prefix): torch.as_tensor(arrays[k]) for k in arrays.files if k.startswith(prefix)}


def golden_filter(case: dict) -> torch.Tensor:
    """The filter that a case of upfirdn2d or of a convolution names."""
    return golden_arrays("upfirdn2d", f"filter_{case['filter']}")[""]


def golden_cases(name: str):
    return json.loads((GOLDEN / f"{name}.json").read_text())

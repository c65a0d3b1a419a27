"""Golden arrays: what the published implementation computed on small random inputs."""

import json
from pathlib import Path

import numpy as np
import torch

from training.config import DiscriminatorConfig, GeneratorConfig

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


def golden_configs(name: str) -> tuple[GeneratorConfig, DiscriminatorConfig]:
    """Constructor arguments of the golden networks: "cond" or "uncond"."""
    settings = golden_cases("networks")[name]
    g, d = settings["G"], settings["D"]
    generator = GeneratorConfig(
        resolution=g["img_resolution"],
        num_contrasts=g["img_channels"],
        num_maps=0,
        z_dim=g["z_dim"],
        c_dim=g["c_dim"],
        w_dim=g["w_dim"],
        mapping_layers=g["mapping_kwargs"]["num_layers"],
        **g["synthesis_kwargs"],
    )
    shared = {key: d[key] for key in ("img_channels", "c_dim", "mbstd_group_size")}
    return generator, DiscriminatorConfig(d["img_resolution"], **shared, **g["synthesis_kwargs"])

"""Augmentation against golden numbers: what the published implementation computed with each transformation alone."""

import math

import pytest
import torch

from helpers.goldens import golden_arrays, golden_cases
from training.augment.augment import augment
from training.augment.bands import _bank, total_gains
from training.augment.draws import Draws


def erfinv(u: float) -> float:
    return float(torch.erfinv(torch.tensor(2 * u - 1, dtype=torch.float64)))


def parameters(strengths: dict, percentile: float, width: int) -> dict:
    """The parameters of the published pipe with every random number at one percentile (golden/README.md)."""
    e, signed = erfinv(percentile), 2 * percentile - 1
    values = {
        "xflip": math.floor(2 * percentile),
        "rotate90": math.floor(4 * percentile),
        "xint": [round(signed * 0.125 * width)] * 2,
        "scale": 2 ** (e * 0.2),
        "rotate": signed * math.pi,
        "aniso": 2 ** (e * 0.2),
        "xfrac": [e * 0.125 * width] * 2,
        "brightness": e * 0.2,
        "contrast": 2 ** (e * 0.5),
        "lumaflip": math.floor(2 * percentile),
        "hue": signed * math.pi,
        "saturation": 2**e,
        "imgfilter": [2**e] * 4,
        "cutout": [percentile] * 2,
    }
    return {"rotate_before" if name == "rotate" else name: values[name] for name in strengths}


def draws_of(case: dict, count: int, width: int) -> Draws:
    rows = {
        name: torch.tensor([value] * count, dtype=torch.float64)
        for name, value in parameters(case["strengths"], case["percentile"], width).items()
    }
    if "imgfilter" in rows:
        rows["imgfilter"] = total_gains(rows["imgfilter"])
    return Draws(**rows)


@pytest.mark.parametrize("case", golden_cases("augment"), ids=lambda c: f"{'-'.join(c['strengths'])}@{c['percentile']}")
def test_golden(case):
    arrays = golden_arrays("augment")
    x = arrays[case["input"]]
    found = augment(x, draws_of(case, len(x), x.shape[-1]), x.shape[1])
    torch.testing.assert_close(found, arrays[f"y{case['case']}"], rtol=0, atol=1e-4)


def test_band_filters():
    expected = golden_arrays("augment")["imgfilter_bank"].to(torch.float64)
    torch.testing.assert_close(torch.from_numpy(_bank()), expected, rtol=0, atol=1e-7)

"""Options of a U-Net's training."""

import pytest

from dnnlib.errors import UserError
from rings import refused
from segmentation.config import TrainUNetConfig


@pytest.mark.parametrize("name, value", [("seed", 10**20), ("steps", 10**23), ("batch", 10**12), ("workers", 10**5)])
def test_numbers_that_nothing_can_hold_are_refused(name, value):
    with pytest.raises(UserError, match=f"--{name} {value}: expected a whole number from"):
        TrainUNetConfig(**{"steps": 1, name: value})


@pytest.mark.parametrize(
    "option, value", [("steps", 0), ("batch", 0), ("lr", 0), ("lr", "nan"), ("width", 0), ("seed", -1), ("workers", -1)]
)
def test_options_out_of_range_are_refused(tmp_path, train_zip, option, value):
    steps = () if option == "steps" else ("--steps", 1)
    output = refused("train", "--data", train_zip, "--outdir", tmp_path / "new", *steps, f"--{option}", value)
    assert f"--{option}" in output and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "shares, words",
    [
        (("--empty", 1), "--empty 1: expected a share from 0"),
        (("--lesion-free", "nan"), "--lesion-free nan"),
        (("--empty", 0.5, "--lesion-free", 0.5), "leave no slice with lesion"),
    ],
)
def test_shares_out_of_range_are_refused(tmp_path, train_zip, shares, words):
    output = refused("train", "--data", train_zip, "--outdir", tmp_path / "new", "--steps", 1, *shares)
    assert words in output and not (tmp_path / "new").exists()

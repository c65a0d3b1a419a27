"""Draws of augmentation: functions of their keys, with the frequencies and sizes of the published pipes."""

import dataclasses
import math

import pytest
import torch

from training.augment.draws import Draws, draws
from training.augment.pipes import TRANSFORMATIONS

CPU = torch.device("cpu")
NEUTRAL = {"scale": 1, "aniso": 1, "contrast": 1, "saturation": 1, "imgfilter": 1}
NAMES = [field.name for field in dataclasses.fields(Draws) if field.name != "noise_images"]
MANY = 4000


def keys(count: int, seed: int = 0) -> list[tuple]:
    return [(seed, 17, "Dmain", sample, "real") for sample in range(count)]


def drawn(p: float, count: int = 20, pipe=TRANSFORMATIONS, resolution: int = 8) -> Draws:
    return draws(keys(count), p, pipe, 2, resolution, CPU)


def happens(name: str, values: torch.Tensor) -> torch.Tensor:
    """Tell which images a parameter changes. An angle or a shift of 0 may also come by chance."""
    changes = ~values.isnan() if name == "cutout" else values != NEUTRAL.get(name, 0)
    return changes.reshape(len(values), -1).any(dim=1)


@pytest.fixture(scope="module")
def many() -> Draws:
    return draws(keys(MANY), 0.6, set(TRANSFORMATIONS) - {"noise"}, 1, 64, CPU)


def test_a_row_depends_on_its_key_only():
    """To the last bit: processes that draw other parts of a minibatch must see the same."""
    whole = drawn(0.7)
    images = iter(whole.noise_images)
    for i, key in enumerate(keys(20)):
        alone = draws([key], 0.7, TRANSFORMATIONS, 2, 8, CPU)
        for name in NAMES:
            found, expected = getattr(alone, name), getattr(whole, name)[i : i + 1]
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True, msg=name)
        if whole.noise[i] > 0:
            assert torch.equal(alone.noise_images[0], next(images))
    assert next(images, None) is None


def test_other_keys_give_other_draws():
    first, second = drawn(1), draws(keys(20, seed=1), 1, TRANSFORMATIONS, 2, 8, CPU)
    assert not (first.scale == second.scale).any()
    assert not (first.noise_images == second.noise_images).any()


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_transformation_does_not_depend_on_what_else_the_pipe_holds(name):
    alone, all_ = drawn(0.7, pipe=[name]), drawn(0.7)
    found = [field for field in NAMES if getattr(alone, field) is not None]
    assert found == (["rotate_before", "rotate_after"] if name == "rotate" else [name])
    for field in found:
        torch.testing.assert_close(getattr(alone, field), getattr(all_, field), rtol=0, atol=0, equal_nan=True)


def test_a_larger_p_adds_to_what_happens():
    before = drawn(0, 200)
    assert not any(happens(name, getattr(before, name)).any() for name in NAMES)
    assert len(before.noise_images) == 0
    for p in (0.2, 0.5, 0.9, 1):
        now = drawn(p, 200)
        for name in NAMES:
            old, new = getattr(before, name), getattr(now, name)
            kept = happens(name, old)
            assert 0 < happens(name, new).sum() >= kept.sum()
            assert happens(name, new)[kept].all()
            if name != "imgfilter":  # the gains of bands that are changed later renormalize the others
                assert torch.equal(new[kept], old[kept])
        before = now
    assert len(before.noise_images) == 200
    assert not before.cutout.isnan().any()


def test_frequencies(many):
    # A shift of 0 pixels comes by chance, with the probability of the innermost of 16 intervals along each axis.
    expected = {"xflip": 0.3, "rotate90": 0.45, "xint": 0.6 * (1 - 1 / 16**2), "lumaflip": 0.3, "imgfilter": 1 - 0.4**4}
    turning = 1 - math.sqrt(0.4)
    for name in NAMES:
        if name != "noise":
            share = expected.get(name, turning if name.startswith("rotate_") else 0.6)
            found = float(happens(name, getattr(many, name)).double().mean())
            assert found == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / MANY)), name
    turned = happens("rotate", many.rotate_before) | happens("rotate", many.rotate_after)
    assert float(turned.double().mean()) == pytest.approx(0.6, abs=4 * math.sqrt(0.24 / MANY))


@pytest.mark.parametrize(
    "name, sd",
    [("scale", 0.2), ("aniso", 0.2), ("contrast", 0.5), ("saturation", 1), ("xfrac", 8), ("brightness", 0.2)],
)
def test_normal_parameters(many, name, sd):
    values = getattr(many, name)
    values = values[happens(name, values)]
    values = values.log2() if name in NEUTRAL else values
    assert float(values.mean()) == pytest.approx(0, abs=4 * sd / math.sqrt(len(values)))
    assert float(values.std()) == pytest.approx(sd, rel=4 / math.sqrt(2 * len(values)))
    share = float((values.abs() < sd).double().mean())  # of a normal distribution, within one SD
    assert share == pytest.approx(0.6827, abs=4 * math.sqrt(0.22 / len(values)))


@pytest.mark.parametrize("name, largest", [("rotate_before", math.pi), ("rotate_after", math.pi), ("hue", math.pi)])
def test_angles_are_uniform(many, name, largest):
    values = getattr(many, name)
    values = values[happens(name, values)]
    assert largest * 0.99 < float(values.abs().max()) <= largest
    assert float(values.std()) == pytest.approx(largest / math.sqrt(3), rel=0.05)


def test_whole_numbers(many):
    assert set(many.xint.flatten().tolist()) == set(range(-8, 9))  # an eighth of 64 pixels
    assert set(many.rotate90.tolist()) == {0, 1, 2, 3}
    assert set(many.xflip.tolist()) == set(many.lumaflip.tolist()) == {0, 1}


def test_gains_of_bands_keep_the_expected_power(many):
    """A gain of one band leaves the expected power as it is. Where one band alone changes, that is seen in the sum."""
    gains = many.imgfilter
    assert bool((gains > 0).all())
    others_equal = (gains[:, 1] == gains[:, 2]) & (gains[:, 2] == gains[:, 3]) & (gains[:, 0] != gains[:, 1])
    power = (gains.square() * torch.tensor([10, 1, 1, 1]) / 13).sum(dim=1)
    assert others_equal.sum() > 50
    torch.testing.assert_close(power[others_equal], torch.ones_like(power[others_equal]))


def test_noise():
    found = draws(keys(1000), 1, ["noise"], 2, 4, CPU)
    assert float(found.noise.square().mean().sqrt()) == pytest.approx(0.1, rel=0.1)
    assert found.noise_images.shape == (1000, 2, 4, 4)
    assert float(found.noise_images.std()) == pytest.approx(1, rel=0.03)


def test_p_is_a_probability():
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="expected a probability"):
            drawn(p)

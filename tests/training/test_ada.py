"""Adaptive augmentation: how p moves, and that training follows it."""

import dataclasses
import functools

import pytest
import torch

from dnnlib.config import from_json, to_json
from dnnlib.errors import UserError
from helpers.trainings import tiny_config, tiny_trainer
from slices.dataset import SliceDataset
from training.ada import Ada
from training.beginning import describe_augmentation
from training.config import AugmentConfig
from training.loss import REAL_SIGNS
from training.recipes import find_recipe
from training.state import Position

CONFIG = AugmentConfig(("xflip",), 0.0, target=0.6, kimg=0.1)  # p moves by 8 · 4 / 100 at a batch of 8


@pytest.mark.parametrize(
    "before, mean, after",
    [(0.0, 0.7, 0.32), (0.32, 0.5, 0.0), (0.1, 0.5, 0.0), (0.9, 1.0, 1.0), (0.5, 0.6, 0.5), (1.0, -1.0, 0.68)],
)
def test_p_moves_towards_the_target_and_stays_a_probability(before, mean, after):
    moved = Ada(before).seen(mean * 50, 50).adapted(CONFIG, batch=8, step=4)
    assert moved.p == pytest.approx(after)
    assert (moved.signs, moved.reals) == (0, 0)


def test_p_moves_every_few_steps_only_and_not_without_reals():
    seen = Ada(0.5).seen(8, 8)
    assert [seen.adapted(CONFIG, 8, step).p for step in (1, 2, 3, 5, 6, 7)] == [0.5] * 6
    assert seen.seen(-24, 8).signs == -16 and seen.seen(-24, 8).reals == 16
    assert Ada(0.5).adapted(CONFIG, 8, 4) == Ada(0.5)
    assert Ada(0.5).seen(8, 8).adapted(dataclasses.replace(CONFIG, target=None), 8, 4).p == 0.5, "fixed"


def test_a_published_speed():
    """At 500 kimg, p goes from 0 to 1 while 500 kimg are shown."""
    ada, config = Ada(0.0), AugmentConfig(("xflip",), 0.0, 0.6, kimg=500)
    for step in range(1, 250_000 // 64 + 1):
        ada = ada.seen(64, 64).adapted(config, 64, step)
    assert ada.p == pytest.approx(0.5, abs=0.001)


def test_training_follows_the_signs_of_dmain(tmp_path, archive):
    """p, recomputed from the statistics of each step, also over several parts."""
    trainer = tiny_trainer(tmp_path, archive, aug="ada", ada_kimg=0.2, batch_gpu=2, target=0.1)
    p, seen, found, expected = 0.0, [], [], []
    for step in range(1, 13):
        trainer.step()
        count, signs, _ = trainer.state.statistics.sums.pop(REAL_SIGNS).tolist()
        assert count == 4
        seen.append(signs / count)
        if step % 4 == 0:
            p = min(max(p + 0.08 * float(torch.tensor(sum(seen[-4:]) / 4 - 0.1).sign()), 0), 1)
        found.append(trainer.state.ada.p)
        expected.append(p)
    assert found == pytest.approx(expected)
    assert max(found) > 0


def test_a_bad_phase_does_not_count(tmp_path, archive):
    trainer = tiny_trainer(tmp_path, archive, aug="ada")
    with torch.no_grad():
        trainer.state.discriminator.b4.out.bias.fill_(float("nan"))
    trainer.step()
    assert trainer.state.ada == Ada(0.0)


def keep_input(kept, _, inputs):
    kept.append(inputs[0].detach())


def test_the_discriminator_sees_augmented_images_and_path_length_does_not_care(tmp_path, archive):
    """A probability of 1 changes what D judges, reals and fakes, and thus the weights of both; 0 changes nothing."""
    weights = {}
    for name, changes in {"noaug": {}, "0": {"aug": "fixed", "p": 0}, "1": {"aug": "fixed", "p": 1}}.items():
        trainer = tiny_trainer(tmp_path, archive, **changes)
        judged = weights[name] = []
        keep = functools.partial(keep_input, judged)
        trainer.state.discriminator.register_forward_pre_hook(keep)
        trainer.step()
    for plain, still, moved in zip(weights["noaug"][:1], weights["0"][:1], weights["1"][:1], strict=True):
        torch.testing.assert_close(still, plain, rtol=0, atol=1e-5)
        assert (moved - plain).abs().mean() > 0.05
    reals = [pictures[-1] for pictures in weights.values()]  # of R1
    assert (reals[2] - reals[0]).abs().mean() > 0.05


def test_states_carry_p_and_its_sums(tmp_path, archive):
    trainer = tiny_trainer(tmp_path, archive, aug="ada", ada_kimg=0.05, target=-1)
    for _ in range(6):
        trainer.step()
    position = trainer.state.position
    assert position.ada is not None and position.ada.p > 0 and position.ada.reals == 8
    assert from_json(Position, to_json(position)) == position
    again = tiny_trainer(tmp_path, archive, aug="ada", ada_kimg=0.05, target=-1)
    again.state.load({name: tensor.clone() for name, tensor in trainer.state.tensors().items()}, position)
    assert again.state.ada == trainer.state.ada
    old = {name: value for name, value in to_json(position).items() if name != "ada"}
    assert from_json(Position, old).ada is None, "a state of a run without augmentation"


@pytest.mark.parametrize(
    "given, message",
    [
        ({"p": 0.2}, "--p 0.2 belongs to --aug=fixed, but this is --aug=noaug"),
        ({"aug": "ada", "p": 0.2}, "--p 0.2 belongs to --aug=fixed, but this is --aug=ada"),
        ({"aug": "fixed", "p": 0.2, "target": 0.5}, "--target 0.5 belongs to --aug=ada"),
        ({"aug": "fixed"}, "--aug=fixed needs the probability"),
        ({"aug": "fixed", "p": 1.2}, "--p 1.2"),
        ({"aug": "ada", "target": 2}, "--target 2"),
        ({"augpipe": "bgc"}, "nothing is augmented"),
        ({"fp32": True, "precision": "bf16"}, "contradict each other"),
    ],
)
def test_options_that_contradict_each_other(given, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        dataclasses.replace(find_recipe("auto", 64), **given)


def test_the_configuration_says_what_is_augmented(archive):
    dataset = SliceDataset(archive)
    assert tiny_config(dataset).augment is None and "augment" not in to_json(tiny_config(dataset))
    ada = tiny_config(dataset, aug="ada").augment
    assert (ada.p, ada.target, ada.kimg) == (0, 0.6, 500) and {"xflip", "scale", "saturation"} <= {*ada.pipe}
    assert {"hue", "lumaflip"}.isdisjoint(ada.pipe), "there are four contrasts"
    fixed = tiny_config(dataset, aug="fixed", p=0.9, augpipe="blit").augment
    assert (fixed.p, fixed.target, {*fixed.pipe}) == (0.9, None, {"xflip", "rotate90", "xint"})
    assert any("leak" in line for line in describe_augmentation(fixed, "blit", 4))
    assert not any("leak" in line for line in describe_augmentation(ada, None, 4))
    with pytest.raises(UserError, match="--augpipe ''"):  # an empty variable of a script is not the default
        tiny_config(dataset, aug="ada", augpipe="")


def test_a_state_without_p_is_of_another_run(tmp_path, archive):
    trainer = tiny_trainer(tmp_path, archive)
    trainer.step()
    state, other = trainer.state, tiny_trainer(tmp_path, archive, aug="ada").state
    with pytest.raises(UserError, match="it is of another run"):
        other.load(state.tensors(), state.position)

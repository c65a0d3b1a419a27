"""The state of a training before its first step."""

import pytest
import torch

from helpers.trainings import tiny_config
from slices.dataset import SliceDataset
from training.state import TrainingState


def initial(archive, **changes) -> TrainingState:
    return TrainingState.initial(tiny_config(SliceDataset(archive), **changes), torch.device("cpu"))


def test_lazy_regularization_scales_the_optimizer(archive):
    state = initial(archive)
    g, d = state.g_optimizer.defaults, state.d_optimizer.defaults
    assert g["lr"] == pytest.approx(0.0025 * 4 / 5) and g["betas"] == pytest.approx((0, 0.99 ** (4 / 5)))
    assert d["lr"] == pytest.approx(0.0025 * 16 / 17) and d["betas"] == pytest.approx((0, 0.99 ** (16 / 17)))
    plain = initial(archive, pl_weight=0, gamma=0)
    assert plain.g_optimizer.defaults["lr"] == plain.d_optimizer.defaults["lr"] == pytest.approx(0.0025)
    by_hand = initial(archive, lrate=0.01)
    assert by_hand.g_optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 4 / 5)
    assert by_hand.d_optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 16 / 17)


def test_a_state_begins_at_nothing_and_depends_on_the_seed_alone(archive):
    first, again = initial(archive), initial(archive)
    assert first.step == first.nimg == first.tick == first.tick_nimg == 0 and first.pl_mean == 0
    assert set(first.networks) == {"G", "D", "G_ema"}
    for name, network in first.networks.items():
        assert not any(parameter.requires_grad for parameter in network.parameters())
        for value, same in zip(network.state_dict().values(), again.networks[name].state_dict().values(), strict=True):
            assert torch.equal(value, same)
    for value, average in zip(first.generator.parameters(), first.ema.parameters(), strict=True):
        assert torch.equal(value, average) and value is not average

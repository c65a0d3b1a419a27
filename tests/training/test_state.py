"""The state of a training: before its first step, and as tensors and values."""

import pytest
import torch

from dnnlib.errors import UserError
from helpers.trainings import tiny_config, tiny_trainer
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


def test_a_state_goes_on_where_it_was_put_aside(tmp_path, archive):
    """Its tensors come back contiguous, as a file gives them, while weights and moments are channels-last."""
    straight, other = (tiny_trainer(tmp_path, archive) for _ in range(2))
    for _ in range(5):
        straight.step()
    tensors = {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in straight.state.tensors().items()
    }
    position = straight.state.position
    other.state.load(tensors, position)
    for _ in range(5):
        other.reals.next_parts()
    for _ in range(2):
        straight.step()
        other.step()
    assert other.state.position == straight.state.position and other.state.step == 7
    for name, tensor in straight.state.tensors().items():
        assert torch.equal(other.state.tensors()[name], tensor), name
    moments = other.state.g_optimizer.state[other.state.generator.synthesis.b8.conv0.weight]["exp_avg_sq"]
    assert moments.is_contiguous(memory_format=torch.channels_last)
    assert other.state.statistics.collect() == straight.state.statistics.collect()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop("G.mapping.fc0.weight"), "lacks 'G.mapping.fc0.weight'"),
        (lambda t: t.update({"G.other": torch.zeros(1)}), "unknown 'G.other'"),
        (lambda t: t.update({"pl_mean": torch.zeros(2)}), r"pl_mean as \[2\]"),
        (lambda t: t.update({"pl_mean": torch.zeros([], dtype=torch.float64)}), "float64"),
        (lambda t: t.pop("D_optimizer.b4.out.bias.step"), "lacks 'D_optimizer.b4.out.bias.step'"),
    ],
)
def test_tensors_of_other_networks_are_refused(tmp_path, archive, change, words):
    trainer = tiny_trainer(tmp_path, archive)
    trainer.step()
    tensors = trainer.state.tensors()
    change(tensors)
    with pytest.raises(UserError, match=words):
        tiny_trainer(tmp_path, archive).state.load(tensors, trainer.state.position)

"""A training step: its phases, gradients and optimizer steps."""

import math

import torch

from helpers.trainings import tiny_trainer
from slices.dataset import SliceDataset
from training.minibatches import Labeled, Latents, Minibatch


def test_a_step_has_the_phases_of_the_configuration(tmp_path, archive):
    """One optimizer serves both phases of a network."""
    trainer = tiny_trainer(tmp_path, archive)
    assert [(p.name, p.interval) for p in trainer.phases] == [("Gmain", 1), ("Gpl", 4), ("Dmain", 1), ("Dr1", 16)]
    g_main, g_pl, d_main, d_r1 = (phase.optimizer for phase in trainer.phases)
    assert g_main is g_pl is trainer.state.g_optimizer and d_main is d_r1 is trainer.state.d_optimizer
    plain = tiny_trainer(tmp_path, archive, pl_weight=0, gamma=0)
    assert [p.name for p in plain.phases] == ["Gmain", "Dmain"]


def test_a_minibatch_in_microbatches_has_the_gradient_of_the_whole(tmp_path, archive):
    """Microbatches add up to the gradient of the whole minibatch.

    Groups of one sample switch off the minibatch standard deviation, which depends on the microbatch size.
    """

    def gradients(batch_gpu: int) -> dict[str, torch.Tensor]:
        trainer = tiny_trainer(tmp_path, archive, batch=4, batch_gpu=batch_gpu, mixing=0, pl_weight=0)
        dataset = SliceDataset(archive)
        trainer.state.discriminator.b4.mbstd_group_size = 1
        found = {}
        for phase in trainer.phases:
            phase.optimizer.step = lambda: None
            torch.manual_seed(1)
            z, no_label = torch.randn(4, 8), torch.zeros(4, 0)
            real = trainer.source.codec.to_network(torch.stack([dataset[n].stored for n in range(4)]))
            trainer.apply(phase, Minibatch(Labeled(real, no_label), Latents(z, no_label)))
            for name, parameter in phase.network.named_parameters():
                # Noise is drawn anew for each microbatch.
                if parameter.grad is not None and not name.endswith("noise_strength"):
                    found[f"{phase.name} {name}"] = parameter.grad.clone()
        return found

    whole, shares = gradients(4), gradients(2)
    assert {name.split()[0] for name in whole} == {"Gmain", "Dmain", "Dr1"} and set(whole) == set(shares)
    for name, gradient in whole.items():
        torch.testing.assert_close(shares[name], gradient, rtol=1e-4, atol=1e-5)


def test_steps_move_all_networks_and_are_reproducible(tmp_path, archive):
    trainers = [tiny_trainer(tmp_path, archive) for _ in range(2)]
    first, second = (trainer.state for trainer in trainers)
    before = {name: [p.clone() for p in network.parameters()] for name, network in first.networks.items()}
    for trainer in trainers:
        torch.manual_seed(5)
        for _ in range(3):
            trainer.step()
    assert (first.step, first.nimg, first.tick) == (3, 12, 0)
    for name, network in first.networks.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True))
        for a, b in zip(network.parameters(), second.networks[name].parameters(), strict=True):
            torch.testing.assert_close(a, b)


def test_non_finite_gradients_are_counted_and_replaced(tmp_path, archive):
    trainer = tiny_trainer(tmp_path, archive)
    phase = trainer.phases[0]
    for parameter in phase.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    first = next(phase.network.parameters())
    first.grad.flatten()[:3] = torch.tensor([math.nan, math.inf, -math.inf])
    trainer.replace_non_finite_gradients(phase)
    assert first.grad.flatten()[:3].tolist() == [0, 1e5, -1e5]
    assert trainer.statistics.collect()["Health/non_finite_gradients/Gmain"].mean == 3

"""The four phases of the loss."""

import pytest
import torch

from helpers.drawn import write_archive
from helpers.trainings import tiny_trainer
from slices.dataset import SliceDataset
from torch_utils.stats import Statistics
from training import loss as losses
from training.config import DiscriminatorConfig, GeneratorConfig, LossConfig
from training.minibatches import Labeled, Latents, Minibatch
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator


@pytest.mark.parametrize("cond", [False, True])
def test_phases_have_the_published_weights(tmp_path, cond):
    """A phase's gradient is the gradient of its pure function, times its weight and its interval."""
    data = write_archive(tmp_path / "data.zip", labels=True)
    trainer, dataset = tiny_trainer(tmp_path, data, cond=cond, mixing=0, gamma=3, pl_weight=0.5), SliceDataset(data)
    real = trainer.source.codec.to_network(torch.stack([dataset[n].stored for n in range(4)]))
    z, c, real_c = torch.randn(4, 8), *torch.randn(2, 4, 2 if cond else 0)
    generator, discriminator = trainer.state.generator, trainer.state.discriminator

    def fakes():
        return generator.synthesis(generator.mapping(z, c))

    def path_length():
        ws = generator.mapping(z[:2], c[:2])
        images = generator.synthesis(ws)
        lengths = losses.path_lengths(images, ws, torch.randn_like(images))
        return losses.path_length_penalty(lengths, torch.tensor(0.7))[0].mean() * 0.5 * 4

    def r1():
        images = real.clone().requires_grad_()
        return losses.r1_penalty(losses.r1_gradients(discriminator(images, real_c), images)).mean() * 1.5 * 16

    softplus = torch.nn.functional.softplus
    expected = {
        "Gmain": lambda: softplus(-discriminator(fakes(), c)).mean(),
        "Gpl": path_length,
        "Dmain": lambda: (softplus(discriminator(fakes(), c)) + softplus(-discriminator(real, real_c))).mean(),
        "Dr1": r1,
    }
    for phase in trainer.phases:
        phase.optimizer.step = lambda: None
        trainer.state.pl_mean.fill_(0.7)
        torch.manual_seed(2)
        torch.rand([])  # the draw that decides about style mixing
        before = generator.mapping.w_avg.clone()
        phase.network.requires_grad_(True)
        wanted = torch.autograd.grad(expected[phase.name](), list(phase.network.parameters()), allow_unused=True)
        torch.manual_seed(2)
        trainer.apply(phase, Minibatch(Labeled(real, real_c), Latents(z, c)))
        for (name, parameter), gradient in zip(phase.network.named_parameters(), wanted, strict=True):
            if gradient is not None:
                scale = 1e-4 * float(gradient.abs().max())
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=scale + 1e-7, msg=name)
        moved = not torch.equal(generator.mapping.w_avg, before)
        assert moved == (phase.name != "Dr1"), "w_avg follows the fakes of Gmain, Gpl and Dmain"
        assert torch.equal(trainer.state.pl_mean, torch.tensor(0.7)) == (phase.name != "Gpl")
        assert not trainer.state.pl_mean.requires_grad


SMALL = {"resolution": 16, "channel_base": 128, "channel_max": 16}


def small_loss(**changes) -> losses.Loss:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(num_contrasts=4, num_maps=4, z_dim=8, w_dim=8, mapping_layers=2, **SMALL))
    discriminator = Discriminator(DiscriminatorConfig(img_channels=8, **SMALL))
    config = LossConfig(r1_gamma=1, **changes)
    return losses.Loss(generator, discriminator, torch.zeros([]), config, Statistics())


def small_minibatch() -> Minibatch:
    no_label = torch.zeros(4, 0)
    return Minibatch(Labeled(torch.zeros(4, 8, 16, 16), no_label), Latents(torch.randn(4, 8), no_label))


def test_style_mixing_does_not_move_w_avg_twice():
    loss, batch = small_loss(mixing=1), small_minibatch()
    mapping = loss.generator.mapping
    expected = mapping(*batch.latents)[:, 0].mean(dim=0).detach() * 0.005
    loss.generator_main(batch, gain=1)
    torch.testing.assert_close(mapping.w_avg, expected)


def test_the_discriminator_has_one_door(monkeypatch):
    """All phases call the discriminator through one method, so that augmentation would have to be written only once."""
    loss, batch = small_loss(), small_minibatch()
    judge, judged = loss._judge, []
    monkeypatch.setattr(loss, "_judge", lambda *groups: judged.append(len(groups)) or judge(*groups))
    inside = []
    loss.discriminator.register_forward_hook(lambda *_: inside.append(len(judged)))
    for phase in (loss.generator_main, loss.generator_path_length, loss.discriminator_main, loss.discriminator_r1):
        phase(batch, 1)
    assert judged == [1, 2, 1] and inside == [1, 2, 3], "Gmain, Dmain and Dr1: one call each"

"""The four phases of the loss."""

import pytest
import torch

from helpers.drawn import write_archive
from helpers.trainings import tiny_trainer
from torch_utils.stats import Sums
from training import loss as losses
from training.config import DiscriminatorConfig, GeneratorConfig, LossConfig
from training.minibatches import FakeInputs, Labeled, Part
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator


@pytest.mark.parametrize("cond", [False, True])
def test_phases_have_the_published_weights(tmp_path, cond):
    """A phase's gradient is the gradient of its pure function, times its weight and its interval."""
    data = write_archive(tmp_path / "data.zip", labels=True)
    trainer = tiny_trainer(tmp_path, data, cond=cond, mixing=0, gamma=3, pl_weight=0.5)
    (reals,) = trainer.reals.next_parts()
    generator, discriminator = trainer.state.generator, trainer.state.discriminator

    def fakes_of(phase, number=4, **options):
        drawn = trainer.fakes.draw(0, phase, range(number), **options)
        ws = generator.mapping(drawn.z, drawn.c)
        return generator.synthesis(ws, noise=drawn.noise), ws, drawn

    def path_length():
        images, ws, drawn = fakes_of("Gpl", 2, directed=True)
        lengths = losses.path_lengths(images, ws, drawn.direction)
        return losses.path_length_penalty(lengths, torch.tensor(0.7))[0].mean() * 0.5 * 4

    def r1():
        images = reals.images.clone().requires_grad_()
        return losses.r1_penalty(losses.r1_gradients(discriminator(images, reals.c), images)).mean() * 1.5 * 16

    def score_fakes(phase):
        images, _, drawn = fakes_of(phase)
        return discriminator(images, drawn.c)

    softplus = torch.nn.functional.softplus
    expected = {
        "Gmain": lambda: softplus(-score_fakes("Gmain")).mean(),
        "Gpl": path_length,
        "Dmain": lambda: (softplus(score_fakes("Dmain")) + softplus(-discriminator(reals.images, reals.c))).mean(),
        "Dr1": r1,
    }
    for phase in trainer.phases:
        phase.optimizer.step = lambda: None
        trainer.state.pl_mean.fill_(0.7)
        before = generator.mapping.w_avg.clone()
        phase.network.requires_grad_(True)
        wanted = torch.autograd.grad(expected[phase.name](), list(phase.network.parameters()), allow_unused=True)
        trainer.apply(phase, [reals])
        for (name, parameter), gradient in zip(phase.network.named_parameters(), wanted, strict=True):
            if gradient is not None:
                scale = 1e-4 * float(gradient.abs().max())
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=scale + 1e-7, msg=name)
        moved = not torch.equal(generator.mapping.w_avg, before)
        assert moved == (phase.name != "Dr1"), "w_avg follows the fakes of Gmain, Gpl and Dmain"
        assert torch.equal(trainer.state.pl_mean, torch.tensor(0.7)) == (phase.name != "Gpl")
        assert not trainer.state.pl_mean.requires_grad


def test_w_avg_moves_by_the_mean_of_the_whole_minibatch(tmp_path, archive):
    """The second latents of style mixing do not move it."""
    trainer = tiny_trainer(tmp_path, archive, mixing=1, batch=12, batch_gpu=4)
    drawn = trainer.fakes.draw(0, "Gmain", range(12))
    mapping = trainer.state.generator.mapping
    expected = mapping(drawn.z, drawn.c)[:, 0].mean(dim=0).detach() * 0.005
    trainer.apply(trainer.phases[0], trainer.reals.next_parts())
    torch.testing.assert_close(mapping.w_avg, expected)


SMALL = {"resolution": 16, "channel_base": 128, "channel_max": 16}


def small_loss(**changes) -> losses.Loss:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(num_contrasts=4, num_maps=4, z_dim=8, w_dim=8, mapping_layers=2, **SMALL))
    discriminator = Discriminator(DiscriminatorConfig(img_channels=8, **SMALL))
    return losses.Loss(generator, discriminator, torch.zeros([]), LossConfig(r1_gamma=1, **changes))


def small_part(loss: losses.Loss, crossover: int | None = None) -> Part:
    no_label, noise = torch.zeros(4, 0), torch.randn(4, loss.generator.synthesis.noise_size)
    z, second_z, direction = torch.randn(4, 8), torch.randn(4, 8), torch.randn(4, 8, 16, 16)
    fakes = FakeInputs(z, no_label, noise, second_z, crossover, direction)
    return Part(Labeled(torch.zeros(4, 8, 16, 16), no_label), fakes)


def test_style_mixing_takes_layers_from_the_crossover_on_from_the_second_latent():
    loss = small_loss()
    part, mapping = small_part(loss, crossover=2), loss.generator.mapping
    _, ws = loss._generate(part.fakes, Sums())
    first, second = mapping(part.fakes.z, part.fakes.c), mapping(part.fakes.second_z, part.fakes.c)
    assert torch.equal(ws[:, :2], first[:, :2]) and torch.equal(ws[:, 2:], second[:, 2:])


def test_the_discriminator_has_one_door(monkeypatch):
    """All phases call the discriminator through one method, so that augmentation would have to be written only once."""
    loss = small_loss()
    part, judge, judged = small_part(loss), loss._judge, []
    monkeypatch.setattr(loss, "_judge", lambda *groups: judged.append(len(groups)) or judge(*groups))
    inside = []
    loss.discriminator.register_forward_hook(lambda *_: inside.append(len(judged)))
    for phase in (loss.generator_main, loss.generator_path_length, loss.discriminator_main, loss.discriminator_r1):
        phase(part, 1, Sums())
    assert judged == [1, 2, 1] and inside == [1, 2, 3], "Gmain, Dmain and Dr1: one call each"

"""Losses as pure functions, and the four phases that add up their gradients."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from torch_utils.stats import Statistics
from training.config import LossConfig
from training.minibatches import Labeled, Latents, Minibatch
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Non-saturating logistic loss −log σ(D(G(z))) of each sample (StyleGAN2, appendix B)."""
    return F.softplus(-fake_logits)


def discriminator_loss_on_fakes(fake_logits: torch.Tensor) -> torch.Tensor:
    """−log(1 − σ(D(G(z)))) of each sample."""
    return F.softplus(fake_logits)


def discriminator_loss_on_reals(real_logits: torch.Tensor) -> torch.Tensor:
    """−log σ(D(x)) of each sample."""
    return F.softplus(-real_logits)


def r1_gradients(real_logits: torch.Tensor, real_images: torch.Tensor) -> torch.Tensor:
    """Gradient of every logit with respect to its own image, [N, C + K, H, W], itself differentiable."""
    (gradients,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return gradients


def r1_penalty(gradients: torch.Tensor) -> torch.Tensor:
    """Squared norm of each image's gradient, [N]; the loss is γ/2 times this (Mescheder et al. 2018, equation 9)."""
    return gradients.square().sum(dim=[1, 2, 3])


def path_lengths(images: torch.Tensor, ws: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Length of Jᵀy for each sample, [N], where J = ∂images/∂ws and y = noise/√(H·W) (StyleGAN2, equation 4).

    images: [N, C + K, H, W], computed from ws [N, num_ws, w_dim]. noise: unit normal, shaped as the images.
    """
    y = noise / math.sqrt(images.shape[2] * images.shape[3])
    (gradients,) = torch.autograd.grad((images * y).sum(), ws, create_graph=True)  # [N, num_ws, w_dim]
    return gradients.square().sum(dim=2).mean(dim=1).sqrt()


def path_length_penalty(
    lengths: torch.Tensor, running_mean: torch.Tensor, decay: float = 0.01
) -> tuple[torch.Tensor, torch.Tensor]:
    """(penalty [N], updated mean). The gradient flows through the updated mean too; store it detached."""
    mean = running_mean.lerp(lengths.mean(), decay)
    return (lengths - mean).square(), mean


class Loss:
    """Adds up the gradients of the four phases.

    Each method takes a microbatch and a gain, a factor of the gradients that it adds to those of the parameters. It
    also reports to the statistics.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        pl_mean: torch.Tensor,
        config: LossConfig,
        statistics: Statistics,
    ) -> None:
        """pl_mean: running mean of path lengths, []; Gpl moves it in place."""
        self.generator, self.discriminator, self.pl_mean = generator, discriminator, pl_mean
        self.config, self.statistics = config, statistics

    def generator_main(self, batch: Minibatch, gain: float) -> None:
        """Gmain: make fakes that the discriminator takes for real."""
        images, _ = self._generate(batch.latents)
        (logits,) = self._judge(Labeled(images, batch.latents.c))
        loss = generator_loss(logits)
        self.statistics.report("Loss/scores/fake", logits)
        self.statistics.report("Loss/signs/fake", logits.sign())
        self.statistics.report("Loss/G/loss", loss)
        (loss.mean() * gain).backward()

    def generator_path_length(self, batch: Minibatch, gain: float) -> None:
        """Gpl: a step in w should change the image by the same amount everywhere (StyleGAN2, section 3.2)."""
        z, c = batch.latents
        n = max(len(z) // self.config.pl_batch_shrink, 1)
        images, ws = self._generate(Latents(z[:n], c[:n]))
        lengths = path_lengths(images, ws, torch.randn_like(images))
        penalty, mean = path_length_penalty(lengths, self.pl_mean, self.config.pl_decay)
        self.statistics.report("Loss/pl_penalty", penalty)
        self.statistics.report("Loss/G/pl_length", lengths)
        (penalty.mean() * self.config.pl_weight * gain).backward()
        self.pl_mean.copy_(mean.detach())

    def discriminator_main(self, batch: Minibatch, gain: float) -> None:
        """Dmain: tell fakes from reals."""
        with torch.no_grad():
            images, _ = self._generate(batch.latents)
        fake_logits, real_logits = self._judge(Labeled(images, batch.latents.c), batch.reals)  # [N, 1] each
        fake_loss, real_loss = discriminator_loss_on_fakes(fake_logits), discriminator_loss_on_reals(real_logits)
        ((fake_loss.mean() + real_loss.mean()) * gain).backward()
        self.statistics.report("Loss/scores/fake", fake_logits)
        self.statistics.report("Loss/signs/fake", fake_logits.sign())
        self.statistics.report("Loss/scores/real", real_logits)
        self.statistics.report("Loss/signs/real", real_logits.sign())
        self.statistics.report("Loss/D/loss", fake_loss + real_loss)

    def discriminator_r1(self, batch: Minibatch, gain: float) -> None:
        """Dr1: keep the discriminator flat around real images."""
        images = batch.reals.images.detach().requires_grad_(True)
        (logits,) = self._judge(Labeled(images, batch.reals.c))
        gradients = r1_gradients(logits, images)
        penalty = r1_penalty(gradients)
        self.statistics.report("Loss/r1_penalty", penalty)
        self.statistics.report("Loss/D/reg", penalty * (self.config.r1_gamma / 2))
        self._report_label_share(gradients.detach())
        (penalty.mean() * (self.config.r1_gamma / 2) * gain).backward()

    def _judge(self, *groups: Labeled) -> tuple[torch.Tensor, ...]:
        """Logits [N, 1] of each group. The one way by which images come before the discriminator in training.

        Groups have N images each. They are judged in one call, which saves time where N is small, yet apart: the
        discriminator compares images within a group only.
        """
        if len(groups) == 1:
            return (self.discriminator(*groups[0]),)
        images, c = map(torch.cat, zip(*groups, strict=True))  # one after the other along N
        return self.discriminator(images, c, minibatches=len(groups)).chunk(len(groups))

    def _generate(self, latents: Latents) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [N, C + K, H, W] and the w's that made them, [N, num_ws, w_dim]."""
        mapping = self.generator.mapping
        ws = mapping(*latents, update_average=True)
        if torch.rand([]) < self.config.mixing:
            # Style mixing. Its second latent does not move w_avg.
            crossover = int(torch.randint(1, ws.shape[1], []))
            others = mapping(torch.randn_like(latents.z), latents.c)
            ws = torch.cat([ws[:, :crossover], others[:, crossover:]], dim=1)
        return self.generator.synthesis(ws), ws

    def _report_label_share(self, gradients: torch.Tensor) -> None:
        """How much of its attention D gives to the label maps: near 0, it judges the contrasts alone."""
        config = self.generator.config
        if config.num_maps:
            energy = gradients.square().sum(dim=[2, 3])  # [N, C + K]
            share = energy[:, config.num_contrasts :].sum(dim=1) / energy.sum(dim=1).clamp(min=1e-20)
            self.statistics.report("Loss/D/label_share", share)

"""Losses as pure functions, and the four training phases that compute their gradients."""

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
    return F.softplus(-fake_logits)  # softplus(−x) = log(1 + exp(−x)) = −log σ(x), without overflow


def discriminator_loss_on_fakes(fake_logits: torch.Tensor) -> torch.Tensor:
    """Logistic loss −log(1 − σ(D(G(z)))) of each fake (StyleGAN2, appendix B)."""
    return F.softplus(fake_logits)  # 1 − σ(x) = σ(−x)


def discriminator_loss_on_reals(real_logits: torch.Tensor) -> torch.Tensor:
    """Logistic loss −log σ(D(x)) of each real sample (StyleGAN2, appendix B)."""
    return F.softplus(-real_logits)


def r1_gradients(real_logits: torch.Tensor, real_images: torch.Tensor) -> torch.Tensor:
    """Gradient ∇D(x) of each logit by its own image, [N, C + K, H, W]. It can be differentiated again."""
    # Backpropagating the sum gives all N gradients at once: a logit depends on other images only through the minibatch
    # standard deviation, which the definition leaves aside.
    (gradients,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return gradients


def r1_penalty(gradients: torch.Tensor) -> torch.Tensor:
    """Squared norm ‖∇D(x)‖² of each image's gradient, [N]. R1 is γ/2 times it (Mescheder et al. 2018, equation 9)."""
    return gradients.square().sum(dim=[1, 2, 3])


def path_lengths(images: torch.Tensor, ws: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Length ‖Jᵀy‖ for each sample, [N], with J = ∂images/∂ws and y = noise/√(H·W) (StyleGAN2, equation 4).

    images: [N, C + K, H, W], computed from ws [N, num_ws, w_dim]. noise: unit normal, shaped as the images.
    """
    y = noise / math.sqrt(images.shape[2] * images.shape[3])  # [N, C + K, H, W]
    # Jᵀy = ∂(images · y)/∂ws: one backward pass, and J is never built.
    (gradients,) = torch.autograd.grad((images * y).sum(), ws, create_graph=True)  # [N, num_ws, w_dim]
    return gradients.square().sum(dim=2).mean(dim=1).sqrt()  # [N]


def path_length_penalty(
    lengths: torch.Tensor, running_mean: torch.Tensor, decay: float = 0.01
) -> tuple[torch.Tensor, torch.Tensor]:
    """Penalty (‖Jᵀy‖ − a)² of each sample, [N], and the updated running mean a, [] (StyleGAN2, equation 4).

    The gradient flows through the updated mean too. The caller stores the mean detached.
    """
    mean = running_mean.lerp(lengths.mean(), decay)
    return (lengths - mean).square(), mean


class Loss:
    """Computes the gradients of the four training phases.

    Each public method is a phase. It takes a microbatch, multiplies its gradients by `gain`, adds them to the
    parameters' .grad, and reports to the statistics.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        pl_mean: torch.Tensor,
        config: LossConfig,
        statistics: Statistics,
    ) -> None:
        """pl_mean: running mean of path lengths, []; `generator_path_length` changes it in place."""
        self.generator, self.discriminator, self.pl_mean = generator, discriminator, pl_mean
        self.config, self.statistics = config, statistics

    def generator_main(self, batch: Minibatch, gain: float) -> None:
        """Gmain: train the generator to make fakes that the discriminator takes for real."""
        images, _ = self._generate(batch.latents)  # [N, C + K, H, W]
        (logits,) = self._judge(Labeled(images, batch.latents.c))  # [N, 1]
        loss = generator_loss(logits)
        self.statistics.report("Loss/scores/fake", logits)
        self.statistics.report("Loss/signs/fake", logits.sign())
        self.statistics.report("Loss/G/loss", loss)
        (loss.mean() * gain).backward()

    def generator_path_length(self, batch: Minibatch, gain: float) -> None:
        """Gpl: penalize steps in w that change the image by more or less than the mean (StyleGAN2, section 3.2)."""
        z, c = batch.latents
        n = max(len(z) // self.config.pl_batch_shrink, 1)
        images, ws = self._generate(Latents(z[:n], c[:n]))  # [n, C + K, H, W], [n, num_ws, w_dim]
        lengths = path_lengths(images, ws, torch.randn_like(images))  # [n]
        penalty, mean = path_length_penalty(lengths, self.pl_mean, self.config.pl_decay)
        self.statistics.report("Loss/pl_penalty", penalty)
        self.statistics.report("Loss/G/pl_length", lengths)
        (penalty.mean() * self.config.pl_weight * gain).backward()
        self.pl_mean.copy_(mean.detach())

    def discriminator_main(self, batch: Minibatch, gain: float) -> None:
        """Dmain: train the discriminator to tell fakes from reals."""
        with torch.no_grad():
            images, _ = self._generate(batch.latents)  # [N, C + K, H, W]
        fake_logits, real_logits = self._judge(Labeled(images, batch.latents.c), batch.reals)  # [N, 1] each
        fake_loss, real_loss = discriminator_loss_on_fakes(fake_logits), discriminator_loss_on_reals(real_logits)
        ((fake_loss.mean() + real_loss.mean()) * gain).backward()
        self.statistics.report("Loss/scores/fake", fake_logits)
        self.statistics.report("Loss/signs/fake", fake_logits.sign())
        self.statistics.report("Loss/scores/real", real_logits)
        self.statistics.report("Loss/signs/real", real_logits.sign())
        self.statistics.report("Loss/D/loss", fake_loss + real_loss)

    def discriminator_r1(self, batch: Minibatch, gain: float) -> None:
        """Dr1: penalize the discriminator's slope at real images."""
        images = batch.reals.images.detach().requires_grad_(True)  # [N, C + K, H, W]
        (logits,) = self._judge(Labeled(images, batch.reals.c))  # [N, 1]
        gradients = r1_gradients(logits, images)  # [N, C + K, H, W]
        penalty = r1_penalty(gradients)  # [N]
        self.statistics.report("Loss/r1_penalty", penalty)
        self.statistics.report("Loss/D/reg", penalty * (self.config.r1_gamma / 2))
        self._report_label_share(gradients.detach())
        (penalty.mean() * (self.config.r1_gamma / 2) * gain).backward()

    def _judge(self, *groups: Labeled) -> tuple[torch.Tensor, ...]:
        """Logits [N, 1] of each group of N images. Every image that trains goes to the discriminator through here.

        One call for all groups saves time where N is small. The discriminator still compares images only with those of
        their own group.
        """
        if len(groups) == 1:
            return (self.discriminator(*groups[0]),)
        # zip(*groups) turns (images, c) pairs into all images and all c; cat joins the groups along N.
        images, c = map(torch.cat, zip(*groups, strict=True))  # [groups · N, C + K, H, W], [groups · N, c_dim]
        return self.discriminator(images, c, minibatches=len(groups)).chunk(len(groups))

    def _generate(self, latents: Latents) -> tuple[torch.Tensor, torch.Tensor]:
        """Generate images [N, C + K, H, W]. Returns them with their w's, [N, num_ws, w_dim]."""
        mapping = self.generator.mapping
        ws = mapping(*latents)  # [N, num_ws, w_dim]
        mapping.move_average(ws[:, 0].detach().mean(dim=0))
        if torch.rand([]) < self.config.mixing:
            # Style mixing (StyleGAN, section 3.1): layers from a random one on take the w of a second latent. So the
            # network can't assume that neighboring layers share a style. The second latent does not move w_avg.
            crossover = int(torch.randint(1, ws.shape[1], []))
            others = mapping(torch.randn_like(latents.z), latents.c)
            ws = torch.cat([ws[:, :crossover], others[:, crossover:]], dim=1)  # [N, num_ws, w_dim]
        return self.generator.synthesis(ws), ws

    def _report_label_share(self, gradients: torch.Tensor) -> None:
        """Report the label maps' share of the squared gradient. Near 0, D looks at the contrasts only."""
        config = self.generator.config
        if config.num_maps:
            energy = gradients.square().sum(dim=[2, 3])  # [N, C + K]
            # The contrasts are the first channels, the label maps the others.
            share = energy[:, config.num_contrasts :].sum(dim=1) / energy.sum(dim=1).clamp(min=1e-20)
            self.statistics.report("Loss/D/label_share", share)

"""Losses as pure functions, and the four training phases that compute their gradients."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from torch_utils.stats import Sums
from training.augment.augment import augment
from training.config import LossConfig
from training.minibatches import FakeInputs, Labeled, Part
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


def path_lengths(images: torch.Tensor, ws: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Length ‖Jᵀy‖ for each sample, [N], with J = ∂images/∂ws and y = direction/√(H·W) (StyleGAN2, equation 4).

    images: [N, C + K, H, W], computed from ws [N, num_ws, w_dim]. direction: unit normal, shaped as the images.
    """
    y = direction / math.sqrt(images.shape[2] * images.shape[3])  # [N, C + K, H, W]
    # Jᵀy = ∂(images · y)/∂ws: one backward pass, and J is never built.
    (gradients,) = torch.autograd.grad((images * y).sum(), ws, create_graph=True)  # [N, num_ws, w_dim]
    return gradients.square().sum(dim=2).mean(dim=1).sqrt()  # [N]


def path_length_penalty(
    lengths: torch.Tensor, running_mean: torch.Tensor, decay: float = 0.01
) -> tuple[torch.Tensor, torch.Tensor]:
    """Penalty (‖Jᵀy‖ − a)² of each sample, [N], and the updated running mean a, [] (StyleGAN2, equation 4).

    The gradient flows through the updated mean too, as published.
    """
    mean = running_mean.lerp(lengths.mean(), decay)
    return (lengths - mean).square(), mean


W, PATH_LENGTHS = "w", "path lengths"  # sums of a phase besides its statistics
REAL_SIGNS = "Loss/signs/real"  # statistic to which augmentation adapts


class Loss:
    """Computes the gradients of the four training phases.

    Each public method is a phase. It takes a part of a minibatch, multiplies its gradients by `gain`, adds them to the
    parameters' .grad, and adds what else it finds out to the sums. It changes nothing that another part would see.
    """

    def __init__(
        self, generator: Generator, discriminator: Discriminator, pl_mean: torch.Tensor, config: LossConfig
    ) -> None:
        """pl_mean: running mean of path lengths before the phase, []."""
        self.generator, self.discriminator, self.pl_mean, self.config = generator, discriminator, pl_mean, config

    def generator_main(self, part: Part, gain: float, sums: Sums) -> None:
        """Gmain: train the generator to make fakes that the discriminator takes for real."""
        fakes = _required(part)
        images, _ = self._generate(fakes, sums)  # [N, C + K, H, W]
        (logits,) = self._judge(Labeled(images, fakes.c, fakes.augmentation))  # [N, 1]
        loss = generator_loss(logits)
        sums.report("Loss/scores/fake", logits)
        sums.report("Loss/signs/fake", logits.sign())
        sums.report("Loss/G/loss", loss)
        (loss.mean() * gain).backward()

    def generator_path_length(self, part: Part, gain: float, sums: Sums) -> None:
        """Gpl: penalize steps in w that change the image by more or less than the mean (StyleGAN2, section 3.2).

        The mean in the penalty is moved by the lengths of this part only. So this gradient, unlike the others, depends
        on the size of a part. The mean that is kept moves once a phase, by the lengths of the whole minibatch.
        """
        fakes = _required(part)
        assert fakes.direction is not None
        images, ws = self._generate(fakes, sums)  # [N, C + K, H, W], [N, num_ws, w_dim]
        lengths = path_lengths(images, ws, fakes.direction)  # [N]
        penalty, _ = path_length_penalty(lengths, self.pl_mean, self.config.pl_decay)
        sums.report("Loss/pl_penalty", penalty)
        sums.report("Loss/G/pl_length", lengths)
        sums.add(PATH_LENGTHS, lengths.sum().reshape(1))
        (penalty.mean() * self.config.pl_weight * gain).backward()

    def discriminator_main(self, part: Part, gain: float, sums: Sums) -> None:
        """Dmain: train the discriminator to tell fakes from reals."""
        fakes = _required(part)
        with torch.no_grad():
            images, _ = self._generate(fakes, sums)  # [N, C + K, H, W]
        fake_logits, real_logits = self._judge(Labeled(images, fakes.c, fakes.augmentation), part.reals)  # [N, 1] each
        fake_loss, real_loss = discriminator_loss_on_fakes(fake_logits), discriminator_loss_on_reals(real_logits)
        ((fake_loss.mean() + real_loss.mean()) * gain).backward()
        sums.report("Loss/scores/fake", fake_logits)
        sums.report("Loss/signs/fake", fake_logits.sign())
        sums.report("Loss/scores/real", real_logits)
        sums.report(REAL_SIGNS, real_logits.sign())
        sums.report("Loss/D/loss", fake_loss + real_loss)

    def discriminator_r1(self, part: Part, gain: float, sums: Sums) -> None:
        """Dr1: penalize the discriminator's slope at real images, which it sees through the augmentation."""
        images = part.reals.images.detach().requires_grad_(True)  # [N, C + K, H, W]
        (logits,) = self._judge(part.reals._replace(images=images))  # [N, 1]
        gradients = r1_gradients(logits, images)  # [N, C + K, H, W]
        penalty = r1_penalty(gradients)  # [N]
        sums.report("Loss/r1_penalty", penalty)
        sums.report("Loss/D/reg", penalty * (self.config.r1_gamma / 2))
        self._report_label_share(gradients.detach(), sums)
        (penalty.mean() * (self.config.r1_gamma / 2) * gain).backward()

    def _judge(self, *groups: Labeled) -> tuple[torch.Tensor, ...]:
        """Logits [N, 1] of each group of N images. Every image that trains goes to the discriminator through here.

        One call for all groups saves time where N is small. The discriminator still compares images only with those of
        their own group.
        """
        if len(groups) == 1:
            return (self.discriminator(self._augmented(groups[0]), groups[0].c),)
        images = torch.cat([self._augmented(group) for group in groups])  # [groups · N, C + K, H, W]
        c = torch.cat([group.c for group in groups])  # [groups · N, c_dim]
        return self.discriminator(images, c, minibatches=len(groups)).chunk(len(groups))

    def _augmented(self, group: Labeled) -> torch.Tensor:
        """Images as the discriminator sees them."""
        if group.augmentation is None:
            return group.images
        return augment(group.images, group.augmentation, self.generator.config.num_contrasts)

    def _generate(self, fakes: FakeInputs, sums: Sums) -> tuple[torch.Tensor, torch.Tensor]:
        """Generate images [N, C + K, H, W]. Returns them with their w's, [N, num_ws, w_dim]."""
        mapping = self.generator.mapping
        ws = mapping(fakes.z, fakes.c)  # [N, num_ws, w_dim]
        sums.add(W, ws[:, 0].sum(dim=0))  # for the running mean w_avg
        if (crossover := fakes.crossover) is not None:
            # Style mixing (StyleGAN, section 3.1): layers from a random one on take the w of a second latent. So the
            # network can't assume that neighboring layers share a style. The second latent does not move w_avg.
            others = mapping(fakes.second_z, fakes.c)
            ws = torch.cat([ws[:, :crossover], others[:, crossover:]], dim=1)  # [N, num_ws, w_dim]
        return self.generator.synthesis(ws, noise=fakes.noise), ws

    def _report_label_share(self, gradients: torch.Tensor, sums: Sums) -> None:
        """Report the label maps' share of the squared gradient. Near 0, D looks at the contrasts only."""
        config = self.generator.config
        if config.num_maps:
            energy = gradients.square().sum(dim=[2, 3])  # [N, C + K]
            # The contrasts are the first channels, the label maps the others.
            share = energy[:, config.num_contrasts :].sum(dim=1) / energy.sum(dim=1).clamp(min=1e-20)
            sums.report("Loss/D/label_share", share)


def _required(part: Part) -> FakeInputs:
    """Return the inputs of a part's fakes."""
    assert part.fakes is not None
    return part.fakes

"""State of a training: networks, optimizers and position."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from training.config import TrainingConfig
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator


@dataclass
class TrainingState:
    """Everything that a step changes and later steps need.

    Steps also depend on the configuration, the data, and torch's global random generator.
    """

    generator: Generator
    discriminator: Discriminator
    ema: Generator  # moving average of the generator
    g_optimizer: torch.optim.Optimizer  # shared by the phases Gmain and Gpl
    d_optimizer: torch.optim.Optimizer  # shared by the phases Dmain and Dr1
    pl_mean: torch.Tensor  # running mean of path lengths, []; changed in place
    step: int = 0  # completed steps
    nimg: int = 0  # real images shown
    tick: int = 0  # completed ticks
    tick_nimg: int = 0  # real images shown when the last tick ended

    @classmethod
    def initial(cls, config: TrainingConfig, device: torch.device) -> TrainingState:
        """Create networks with random weights. Seeds torch's global random generator with the configuration's seed."""
        torch.manual_seed(config.seed)
        generator = Generator(config.generator).to(device)
        discriminator = Discriminator(config.discriminator).to(device)
        state = cls(
            generator,
            discriminator,
            ema=copy.deepcopy(generator).eval().requires_grad_(False),
            g_optimizer=_make_optimizer(generator, config.lrate, config.pl_interval if config.loss.pl_weight else None),
            d_optimizer=_make_optimizer(
                discriminator, config.lrate, config.r1_interval if config.loss.r1_gamma else None
            ),
            pl_mean=torch.zeros([], device=device),
        )
        # Trainer.apply unfreezes one network at a time, so the other one costs no gradients.
        generator.requires_grad_(False)
        discriminator.requires_grad_(False)
        return state

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Networks by the names that they have in a snapshot."""
        return {"G": self.generator, "D": self.discriminator, "G_ema": self.ema}

    @property
    def device(self) -> torch.device:
        """Device of all networks."""
        return self.pl_mean.device


def _make_optimizer(network: nn.Module, lrate: float, interval: int | None) -> torch.optim.Adam:
    """Create Adam for a network whose regularizer runs every `interval` steps. None: it has no regularizer.

    The regularizer adds one optimizer step to every `interval` steps of the loss. The learning rate λ and the decays β₁
    and β₂ make up for it: cλ, β₁ᶜ, β₂ᶜ with c = interval / (interval + 1) (StyleGAN2, appendix B, lazy regularization).
    """
    ratio = interval / (interval + 1) if interval else 1.0
    return torch.optim.Adam(
        network.parameters(),
        lr=lrate * ratio,
        betas=(0.0**ratio, 0.99**ratio),
        eps=1e-8,
        fused=True,  # one pass over all parameters, on CPU too
    )

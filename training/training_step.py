"""A training step: apply the phases that are due, then update the moving average."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from torch_utils.stats import Statistics
from training.config import TrainingConfig
from training.ema import ema_beta, update_ema
from training.loss import Loss
from training.minibatches import Minibatch, MinibatchSource
from training.state import TrainingState


@dataclass(frozen=True)
class Phase:
    """Optimization of one network by one loss or regularizer."""

    name: str  # in statistics
    network: nn.Module
    optimizer: torch.optim.Optimizer  # shared by the two phases of a network
    interval: int  # steps from one application to the next; also a factor of the gradients, to make up for the pause
    accumulate: Callable[[Minibatch, float], None]  # adds the gradients of a microbatch, times a gain


class Trainer:
    """Advances a training state step by step."""

    def __init__(
        self, config: TrainingConfig, state: TrainingState, source: MinibatchSource, statistics: Statistics
    ) -> None:
        self.config, self.state, self.source, self.statistics = config, state, source, statistics
        self.phases = make_phases(config, state, statistics)

    def step(self) -> None:
        """Train on one minibatch of reals. Every phase that is due sees the same reals, and latents of its own."""
        state, config = self.state, self.config
        reals = self.source.next_reals()
        for phase in self.phases:
            if state.step % phase.interval == 0:
                self.apply(phase, Minibatch(reals, self.source.draw_latents(config.batch)))
        update_ema(
            state.ema, state.generator, ema_beta(config.batch, config.ema_kimg * 1000, state.nimg, config.ema_ramp)
        )
        state.nimg += config.batch
        state.step += 1

    def apply(self, phase: Phase, minibatch: Minibatch) -> None:
        """Add up a phase's gradients over all microbatches, and take one step of its optimizer."""
        start = time.time()
        phase.network.requires_grad_(True)
        phase.optimizer.zero_grad(set_to_none=True)
        # batch_gpu / batch turns a sum over microbatches into a mean over the minibatch.
        gain = phase.interval * self.config.batch_gpu / self.config.batch
        for microbatch in minibatch.microbatches(self.config.batch_gpu):
            phase.accumulate(microbatch, gain)
        phase.network.requires_grad_(False)
        self.replace_non_finite_gradients(phase)
        phase.optimizer.step()
        self.statistics.report(f"Timing/{phase.name}_sec", time.time() - start)

    def replace_non_finite_gradients(self, phase: Phase) -> None:
        """Replace NaN by 0 and infinity by ±1e5, and count both. One overflow then does not end a run."""
        gradients = [p.grad for p in phase.network.parameters() if p.grad is not None]
        # A sum is finite only if all its terms are. One such test per step makes a GPU wait once, not once per tensor.
        if torch.stack([g.sum() for g in gradients]).isfinite().all():
            return
        count = torch.stack([(~g.isfinite()).sum() for g in gradients]).sum()
        self.statistics.report(f"Health/non_finite_gradients/{phase.name}", count)
        for gradient in gradients:
            gradient.nan_to_num_(nan=0, posinf=1e5, neginf=-1e5)


def make_phases(config: TrainingConfig, state: TrainingState, statistics: Statistics) -> list[Phase]:
    """Create the phases in the order of a step. A regularizer with weight 0 gets no phase."""
    loss = Loss(state.generator, state.discriminator, state.pl_mean, config.loss, statistics)
    generator, discriminator = (state.generator, state.g_optimizer), (state.discriminator, state.d_optimizer)
    phases = [Phase("Gmain", *generator, 1, loss.generator_main)]
    if config.loss.pl_weight:
        phases.append(Phase("Gpl", *generator, config.pl_interval, loss.generator_path_length))
    phases.append(Phase("Dmain", *discriminator, 1, loss.discriminator_main))
    if config.loss.r1_gamma:
        phases.append(Phase("Dr1", *discriminator, config.r1_interval, loss.discriminator_r1))
    return phases

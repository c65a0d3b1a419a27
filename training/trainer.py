"""One training step: the phases that are due, then the moving average."""

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
    """One kind of optimization: of one network by one loss or regularizer."""

    name: str
    network: nn.Module
    optimizer: torch.optim.Optimizer  # one per network serves both of its phases
    interval: int  # steps from one application to the next; its gradients count as many times
    accumulate: Callable[[Minibatch, float], None]  # adds gradients of a microbatch, times a gain


class Trainer:
    """Moves a training state, step by step, and reports to statistics."""

    def __init__(
        self, config: TrainingConfig, state: TrainingState, source: MinibatchSource, statistics: Statistics
    ) -> None:
        self.config, self.state, self.source, self.statistics = config, state, source, statistics
        self.phases = make_phases(config, state, statistics)

    def step(self) -> None:
        """Apply the phases that are due to one minibatch of reals, each with fakes of its own."""
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
        """Gather a phase's gradients over the microbatches, and let its optimizer take one step."""
        start = time.time()
        phase.network.requires_grad_(True)
        phase.optimizer.zero_grad(set_to_none=True)
        gain = phase.interval * self.config.batch_gpu / self.config.batch
        for microbatch in minibatch.microbatches(self.config.batch_gpu):
            phase.accumulate(microbatch, gain)
        phase.network.requires_grad_(False)
        self.replace_non_finite_gradients(phase)
        phase.optimizer.step()
        self.statistics.report(f"Timing/{phase.name}_sec", time.time() - start)

    def replace_non_finite_gradients(self, phase: Phase) -> None:
        """Make NaN 0 and infinity large, so that one overflow does not end a run; they are counted."""
        gradients = [p.grad for p in phase.network.parameters() if p.grad is not None]
        if torch.stack([g.sum() for g in gradients]).isfinite().all():  # one look at all of them, for the usual case
            return
        count = torch.stack([(~g.isfinite()).sum() for g in gradients]).sum()
        self.statistics.report(f"Health/non_finite_gradients/{phase.name}", count)
        for gradient in gradients:
            gradient.nan_to_num_(nan=0, posinf=1e5, neginf=-1e5)


def make_phases(config: TrainingConfig, state: TrainingState, statistics: Statistics) -> list[Phase]:
    """The phases in the order in which a step applies them; a regularizer of weight 0 has none."""
    loss = Loss(state.generator, state.discriminator, state.pl_mean, config.loss, statistics)
    generator, discriminator = (state.generator, state.g_optimizer), (state.discriminator, state.d_optimizer)
    phases = [Phase("Gmain", *generator, 1, loss.generator_main)]
    if config.loss.pl_weight:
        phases.append(Phase("Gpl", *generator, config.pl_interval, loss.generator_path_length))
    phases.append(Phase("Dmain", *discriminator, 1, loss.discriminator_main))
    if config.loss.r1_gamma:
        phases.append(Phase("Dr1", *discriminator, config.r1_interval, loss.discriminator_r1))
    return phases

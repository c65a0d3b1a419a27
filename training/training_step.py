"""A training step: apply the phases that are due, then update the moving average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from dnnlib.errors import Failure
from torch_utils.distributed import World
from torch_utils.sending import send
from torch_utils.stats import Sums
from torch_utils.stopwatch import Stopwatch
from training.augment.draws import Draws
from training.config import TrainingConfig
from training.ema import ema_beta, update_ema
from training.loss import PATH_LENGTHS, REAL_SIGNS, Loss, W
from training.minibatches import AugmentationSource, FakeInputs, FakeSource, Labeled, Part, RealSource
from training.state import TrainingState

STATISTICS = "Loss/"  # names of sums that are statistics begin with this


@dataclass(frozen=True)
class Phase:
    """Optimization of one network by one loss or regularizer."""

    name: str  # in statistics, and in the keys of its random numbers
    network: nn.Module
    optimizer: torch.optim.Optimizer  # shared by the two phases of a network
    interval: int  # steps from one application to the next; also a factor of the gradients, to make up for the pause
    accumulate: Callable[[Part, float, Sums], None]  # adds the gradients of a part, times a gain, and sums
    fakes: int  # number of fakes in a part
    judged: tuple[str, ...] = ()  # images that the discriminator judges: "real", "fake"
    directed: bool = False  # fakes come with directions for path length

    def learns(self, on: bool) -> None:
        """Turn the gradients of all parameters that the optimizer moves on or off. Frozen layers never have any."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(on)


class Diverged(Failure):
    """Phases had gradients that were not finite numbers for too many steps."""


class Trainer:
    """Advances a training state step by step, together with the trainers of all other processes."""

    def __init__(
        self,
        config: TrainingConfig,
        state: TrainingState,
        reals: RealSource,
        fakes: FakeSource,
        world: World,
        max_bad_steps: int = 50,
    ) -> None:
        """max_bad_steps: raise Diverged after this many applications of a phase in a row without finite gradients."""
        self.config, self.state, self.reals, self.fakes, self.world = config, state, reals, fakes, world
        self.max_bad_steps = max_bad_steps
        self.phases = make_phases(config, state)
        self.augmentations = AugmentationSource(config, world.device)
        self.stopwatch = Stopwatch(world.device)

    def step(self, requests: Callable[[], Sequence[float]] = list) -> list[float]:
        """Train on one minibatch of reals. Every phase that is due sees the same reals, and fakes of its own.

        requests: returns numbers from this process, asked near the end of the step. Returns their sums over all
        processes, so that all of them decide alike. Raises Diverged.
        """
        state, config = self.state, self.config
        reals = self.reals.next_parts()
        due = [phase for phase in self.phases if state.step % phase.interval == 0]
        applied = [self.apply(phase, reals, requests if phase is due[-1] else list) for phase in due]
        update_ema(
            state.ema, state.generator, ema_beta(config.batch, config.ema_kimg * 1000, state.nimg, config.ema_ramp)
        )
        state.nimg += config.batch
        state.step += 1
        # The only place of a step where a GPU is waited for.
        finite, signs, asked = _read([result.finite for result in applied], _real_signs(applied), applied[-1].requests)
        for phase, result, fine in zip(due, applied, finite, strict=True):
            self._count_bad(phase, result, bool(fine))
        if state.ada is not None and config.augment is not None:
            state.ada = state.ada.seen(signs[1], int(signs[0])).adapted(config.augment, config.batch, state.step)
        return asked

    def apply(self, phase: Phase, reals: Sequence[Labeled], requests: Callable[[], Sequence[float]] = list) -> Applied:
        """Add up a phase's gradients over all parts of all processes, and take one step of its optimizer.

        reals: real slices of this process, part by part. If a gradient or a sum is not finite, nothing changes.
        """
        config, world = self.config, self.world
        sums = Sums()
        with self.stopwatch.time(f"Timing/{phase.name}_sec"):
            phase.learns(True)
            phase.optimizer.zero_grad(set_to_none=True)
            own = range(world.rank, config.parts, world.size)
            for number, real in zip(own, reals, strict=True):
                # Sample i of the minibatch is in part i modulo the number of parts.
                samples = range(number, config.batch, config.parts)
                fakes = self._draw_fakes(phase, samples[: phase.fakes])
                real = real._replace(augmentation=self._draw_augmentation(phase, "real", samples))
                # 1 / parts turns a sum over parts, which all have the same size, into a mean over the minibatch.
                phase.accumulate(Part(real, fakes), phase.interval / config.parts, sums)
            phase.learns(False)
            result = self._add_up(phase, sums, requests())
            # Fused Adam skips its step on the device, without telling this process, where found_inf is 1.
            phase.optimizer.found_inf = (~result.finite).to(torch.float32)  # type: ignore[attr-defined]
            phase.optimizer.step()
            self._move_means(phase, result)
        return result

    def _draw_fakes(self, phase: Phase, samples: Sequence[int]) -> FakeInputs | None:
        """Draw what the fakes of a part are made of, and how they are augmented."""
        if not samples:
            return None
        fakes = self.fakes.draw(self.state.step, phase.name, samples, phase.directed)
        return replace(fakes, augmentation=self._draw_augmentation(phase, "fake", samples))

    def _draw_augmentation(self, phase: Phase, kind: str, samples: Sequence[int]) -> Draws | None:
        """Draw how the reals or fakes of a part are augmented. None: not at all, or this phase does not judge them."""
        ada = self.state.ada
        if ada is None or kind not in phase.judged:
            return None
        return self.augmentations.draw(self.state.step, phase.name, kind, samples, ada.p)

    def _add_up(self, phase: Phase, sums: Sums, requests: Sequence[float]) -> Applied:
        """Replace a phase's gradients and sums by those of all processes: one reduction."""
        named = {name: p.grad for name, p in phase.network.named_parameters() if p.grad is not None}
        gradients, vectors = list(named.values()), list(sums.vectors.values())
        asked = send(torch.tensor(requests, dtype=torch.float64), self.world.device)
        if self.world.size > 1:
            reduce_together(self.world, gradients, [*vectors, asked])
        # A sum is finite only if all its terms are.
        totals = torch.stack([tensor.sum().to(torch.float64) for tensor in [*gradients, *vectors]])
        return Applied(totals.isfinite().all(), asked, (*named, *sums.vectors), totals, sums.vectors)

    def _move_means(self, phase: Phase, result: Applied) -> None:
        """Move the running means of w and of path lengths, and add to the statistics, unless the phase was bad."""
        state, finite, count = self.state, result.finite, phase.fakes * self.config.parts
        if W in result.sums:
            mapping = state.generator.mapping
            mapping.move_average(torch.where(finite, result.sums[W] / count, mapping.w_avg))
        if PATH_LENGTHS in result.sums:
            mean = result.sums[PATH_LENGTHS][0] / count
            moved = state.pl_mean.lerp(mean, self.config.loss.pl_decay)
            state.pl_mean.copy_(torch.where(finite, moved, state.pl_mean))
        state.statistics.add({name: torch.where(finite, sums, 0) for name, sums in result.statistics.items()})
        state.statistics.report(f"Health/bad_steps/{phase.name}", ~finite)

    def _count_bad(self, phase: Phase, result: Applied, finite: bool) -> None:
        """Count applications in a row without finite gradients. Raises Diverged after too many."""
        in_a_row = self.state.bad_in_a_row
        in_a_row[phase.name] = 0 if finite else in_a_row.get(phase.name, 0) + 1
        if in_a_row[phase.name] < self.max_bad_steps:
            return
        losses = ", ".join(f"{name} {float(sums[1] / sums[0]):g}" for name, sums in result.statistics.items())
        raise Diverged(
            f"{phase.name} had gradients that are no finite numbers {in_a_row[phase.name]} times in a row, at step "
            f"{self.state.step} ({self.state.nimg / 1000:g} kimg), first in {result.first_bad()}; its last values: "
            f"{losses}",
            # The same steps would come to the same numbers.
            advice="Begin anew with a lower --lrate or a higher --gamma. What the run has saved so far is kept.",
        )


def reduce_together(world: World, gradients: Sequence[torch.Tensor], sums: Sequence[torch.Tensor]) -> None:
    """Replace gradients and sums by their totals over all processes, in one reduction of the gradients' type.

    Sums may be of float64, and the gradients of float32. So each process fills a row of its own with its sums, as
    number and remainder: rows then come through as they are, and are added up in float64 by every process alike.
    """
    dtype = gradients[0].dtype  # that of the weights, never a half
    own = torch.cat([tensor.reshape(-1).to(torch.float64) for tensor in sums])
    rows = own.new_zeros([world.size, 2, len(own)], dtype=dtype)
    rows[world.rank, 0] = own.to(dtype)
    rows[world.rank, 1] = (own - rows[world.rank, 0].to(torch.float64)).to(dtype)
    flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), rows.reshape(-1)])
    world.add_up(flat)
    *pieces, filled = flat.split([*(gradient.numel() for gradient in gradients), rows.numel()])
    for gradient, piece in zip(gradients, pieces, strict=True):
        # Copied, not assigned: the optimizer needs gradients in the memory layout of their weights. With another
        # layout, fused Adam on the CPU computes wrong updates without a word.
        gradient.copy_(piece.view(gradient.shape))
    totals = filled.view_as(rows).to(torch.float64).sum(dim=[0, 1])
    for tensor, total in zip(sums, totals.split([tensor.numel() for tensor in sums]), strict=True):
        tensor.copy_(total.view(tensor.shape))


@dataclass(frozen=True)
class Applied:
    """What came of an application of a phase: the same in all processes."""

    finite: torch.Tensor  # whether all gradients and sums are finite numbers, []
    requests: torch.Tensor  # sums of the processes' requests, float64
    names: tuple[str, ...]  # of the parameters that have gradients, then of the sums
    totals: torch.Tensor  # one total for each name, not finite if one of its numbers is not
    sums: dict[str, torch.Tensor]  # over the minibatch

    @property
    def statistics(self) -> dict[str, torch.Tensor]:
        """Count, sum and sum of squares of each statistic, [3]."""
        return {name: sums for name, sums in self.sums.items() if name.startswith(STATISTICS)}

    def first_bad(self) -> str:
        """Name of the first parameter or sum that is not finite."""
        finite = self.totals.isfinite().tolist()
        return next((name for name, fine in zip(self.names, finite, strict=True) if not fine), "none")


def _real_signs(applied: Sequence[Applied]) -> torch.Tensor:
    """Number of real logits that Dmain has seen, and sum of their signs, [2]. Zeros if it was bad."""
    (found,) = (result for result in applied if REAL_SIGNS in result.sums)
    return torch.where(found.finite, found.sums[REAL_SIGNS][:2], 0)


def _read(finite: Sequence[torch.Tensor], *vectors: torch.Tensor) -> list[list[float]]:
    """Copy numbers [] and vectors to this process, all at once. Returns the numbers as one list, then each vector."""
    columns = [torch.stack([*finite]), *vectors]
    numbers = torch.cat([column.to(torch.float64) for column in columns])
    return [piece.tolist() for piece in numbers.cpu().split([len(column) for column in columns])]


def make_phases(config: TrainingConfig, state: TrainingState) -> list[Phase]:
    """Create the phases in the order of a step. A regularizer with weight 0 gets no phase."""
    loss = Loss(state.generator, state.discriminator, state.pl_mean, config.loss)
    generator, discriminator = (state.generator, state.g_optimizer), (state.discriminator, state.d_optimizer)
    fakes = config.batch_gpu
    phases = [Phase("Gmain", *generator, 1, loss.generator_main, fakes, judged=("fake",))]
    if config.loss.pl_weight:
        shrunk = max(fakes // config.loss.pl_batch_shrink, 1)
        phases.append(Phase("Gpl", *generator, config.pl_interval, loss.generator_path_length, shrunk, directed=True))
    phases.append(Phase("Dmain", *discriminator, 1, loss.discriminator_main, fakes, judged=("fake", "real")))
    if config.loss.r1_gamma:
        phases.append(Phase("Dr1", *discriminator, config.r1_interval, loss.discriminator_r1, 0, judged=("real",)))
    return phases

"""State of a training: networks, optimizers, position, and the statistics of the tick that is under way."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from dnnlib.config import optional, shorten
from dnnlib.errors import UserError
from torch_utils.stats import Statistics
from training.ada import Ada
from training.config import TrainingConfig
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator

_STATISTICS = "statistics."  # names of their tensors begin with this
_STEP = "step"  # PyTorch's name of Adam's count of steps, a tensor [] for each parameter


@dataclass(frozen=True)
class Position:
    """Where in its run a training is."""

    step: int  # completed steps
    nimg: int  # real images shown
    tick: int  # completed ticks
    tick_nimg: int  # real images shown when the last tick ended
    seconds: float  # of training so far
    bad_in_a_row: dict[str, int]  # phase -> applications without finite gradients since the last one with
    ada: Ada | None = optional(None)  # probability of augmentations; None: nothing is augmented


@dataclass
class TrainingState:
    """Everything that a step changes and later steps need.

    Steps also depend on the configuration and on the data. Random numbers are functions of the step.
    """

    generator: Generator
    discriminator: Discriminator
    ema: Generator  # moving average of the generator
    g_optimizer: torch.optim.Optimizer  # shared by the phases Gmain and Gpl
    d_optimizer: torch.optim.Optimizer  # shared by the phases Dmain and Dr1
    pl_mean: torch.Tensor  # running mean of path lengths, []; changed in place
    statistics: Statistics = field(default_factory=Statistics)  # of the tick that is under way
    step: int = 0  # these are explained in Position
    nimg: int = 0
    tick: int = 0
    tick_nimg: int = 0
    seconds: float = 0
    bad_in_a_row: dict[str, int] = field(default_factory=dict)
    ada: Ada | None = None

    @classmethod
    def initial(cls, config: TrainingConfig, device: torch.device) -> TrainingState:
        """Create networks with random weights, which depend on the configuration's seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            # On the CPU, so that weights do not depend on the kind of device.
            generator = Generator(config.generator)
            discriminator = Discriminator(config.discriminator)
        generator, discriminator = generator.to(device), discriminator.to(device)
        state = cls(
            generator,
            discriminator,
            # It computes as in generate.py.
            ema=copy.deepcopy(generator).without_bfloat16().eval().requires_grad_(False),
            g_optimizer=_make_optimizer(
                generator.parameters(), config.lrate, config.pl_interval if config.loss.pl_weight else None
            ),
            d_optimizer=_make_optimizer(
                [p for name, p in discriminator.named_parameters() if name.rpartition(".")[0] not in config.frozen],
                config.lrate,
                config.r1_interval if config.loss.r1_gamma else None,
            ),
            pl_mean=torch.zeros([], device=device),
            ada=None if config.augment is None else Ada(config.augment.p),
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

    # --- to and from a file -------------------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """Where the training is, as plain values."""
        return Position(
            self.step, self.nimg, self.tick, self.tick_nimg, self.seconds, dict(self.bad_in_a_row), self.ada
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors of the state by name. They share memory with it."""
        found = {
            f"{name}.{key}": value for name, net in self.networks.items() for key, value in net.state_dict().items()
        }
        found |= {name: optimizer.state[p][key] for name, optimizer, p, key in self._moments() if p in optimizer.state}
        found["pl_mean"] = self.pl_mean
        return found | {_STATISTICS + name: sums for name, sums in self.statistics.sums.items()}

    def load(self, tensors: Mapping[str, torch.Tensor], position: Position) -> None:
        """Take over what `tensors` and `position` have returned. Raises UserError for tensors that don't fit."""
        statistics = {name: tensor for name, tensor in tensors.items() if name.startswith(_STATISTICS)}
        self.statistics.sums = {}
        if (self.ada is None) != (position.ada is None):
            raise UserError("the state and its run differ in whether they augment: it is of another run")
        count = torch.zeros([], dtype=torch.float32)  # the type that Adam gives its counts of steps
        moments = {name: count if key == _STEP else p for name, _, p, key in self._moments()}
        _require_equal_shapes(self.tensors() | moments, {n: t for n, t in tensors.items() if n not in statistics})
        for name, network in self.networks.items():
            network.load_state_dict({key: tensors[f"{name}.{key}"] for key in network.state_dict()})
        for name, optimizer, parameter, key in self._moments():
            # Moments need the memory layout of their weights. With another one, fused Adam on the CPU computes wrong
            # updates without a word.
            like = count.to(self.device, copy=True) if key == _STEP else torch.empty_like(parameter)
            optimizer.state[parameter][key] = like.copy_(tensors[name])
        self.pl_mean.copy_(tensors["pl_mean"])
        for name, sums in statistics.items():
            self.statistics.sums[name.removeprefix(_STATISTICS)] = sums.to(self.device, copy=True)
        for name, value in vars(position).items():
            setattr(self, name, copy.copy(value))

    def _moments(self) -> Iterator[tuple[str, torch.optim.Optimizer, nn.Parameter, str]]:
        """Name each tensor of an optimizer. Yields its name, optimizer, parameter, and key in the optimizer's state.

        Frozen parameters have none.
        """
        for prefix, network, optimizer in (
            ("G", self.generator, self.g_optimizer),
            ("D", self.discriminator, self.d_optimizer),
        ):
            moved = {parameter for group in optimizer.param_groups for parameter in group["params"]}
            for name, parameter in network.named_parameters():
                if parameter not in moved:
                    continue
                for key in (_STEP, "exp_avg", "exp_avg_sq"):
                    yield f"{prefix}_optimizer.{name}.{key}", optimizer, parameter, key


def _require_equal_shapes(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError for the first tensor that is missing, unknown, or of another shape or type."""
    for names, words in ((expected.keys() - found, "lacks"), (found.keys() - expected, "has an unknown")):
        if names:
            raise UserError(f"the state {words} {shorten(min(names))}: it is of other networks")
    for name, tensor in expected.items():
        if (tensor.shape, tensor.dtype) != (found[name].shape, found[name].dtype):
            raise UserError(
                f"the state holds {name} as {list(found[name].shape)} of {found[name].dtype}; the networks need "
                f"{list(tensor.shape)} of {tensor.dtype}"
            )


def _make_optimizer(parameters: Iterable[nn.Parameter], lrate: float, interval: int | None) -> torch.optim.Adam:
    """Create Adam for a network whose regularizer runs every `interval` steps. None: it has no regularizer.

    The regularizer adds one optimizer step to every `interval` steps of the loss. The learning rate λ and the decays β₁
    and β₂ make up for it: cλ, β₁ᶜ, β₂ᶜ with c = interval / (interval + 1) (StyleGAN2, appendix B, lazy regularization).
    """
    ratio = interval / (interval + 1) if interval else 1.0
    return torch.optim.Adam(
        parameters,
        lr=lrate * ratio,
        betas=(0.0**ratio, 0.99**ratio),
        eps=1e-8,
        fused=True,  # one pass over all parameters, on CPU too
    )

"""Times of phases, of draws and of generation, beside the speed of a matrix product."""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, register_flop_formula

from benchmarks.setups import Costs, Setup, TimedTrainer, configure, make_trainer, medians, synchronize
from dnnlib.text import format_table
from torch_utils.distributed import World
from torch_utils.memory import keep_freed_memory
from torch_utils.ops.registered import OPERATORS
from torch_utils.stats import Sums
from training.minibatches import FakeSource, Part
from training.networks.generator import Generator
from training.training_step import Phase

DRAWS = 8  # of each kind after every period


@register_flop_formula(OPERATORS.conv3x3)
def _(x_shape, w_shape, *_, **__) -> int:
    n, _, height, width = x_shape
    return 2 * n * height * width * math.prod(w_shape)


@register_flop_formula(OPERATORS.conv3x3_weight_gradient)
def _(x_shape, _, w_shape, **__) -> int:
    n, _, height, width = x_shape
    return 2 * n * height * width * math.prod(w_shape)


class OperationCounter(TorchDispatchMode):
    """Counts what PyTorch's registry has a formula for: convolutions and matrix products. (Its own FlopCounterMode
    watches modules as well, which does not go with autograd.grad.)"""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


class MatrixProduct:
    """The speed of a float32 product of two n×n matrices: what the machine can do at the time."""

    def __init__(self, device: torch.device, n: int = 4096) -> None:
        self.factors = torch.randn(2, n, n, device=device)
        self.speeds: list[float] = []  # operations a second
        self._seconds()  # the first one has more to do

    def time(self) -> None:
        self.speeds.append(2 * self.factors.shape[1] ** 3 / self._seconds())

    def _seconds(self) -> float:
        synchronize(self.factors.device)
        start = time.perf_counter()
        self.factors[0] @ self.factors[1]
        synchronize(self.factors.device)
        return time.perf_counter() - start

    @property
    def speed(self) -> float:
        """Median."""
        return median(self.speeds)

    def describe(self) -> str:
        return f"4096³ float32 matrix product meanwhile: {self.speed / 1e9:.0f} GFLOP/s"


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- training ---------------------------------------------------------------------------------------------------------


def time_phases(setup: Setup, periods: int) -> str:
    """Train, and draw between periods. Call it in a process of its own, for the sake of the peak memory."""
    keep_freed_memory()
    world = World()
    memory_before = peak_memory(world.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(setup, Path(folder), world)
        memory = peak_memory(world.device)  # every phase has run; the product has not
        product = MatrixProduct(world.device)
        wholes, draws = [], Costs()
        for _ in range(periods):
            product.time()
            wholes.append(trainer.train_period())
            time_draws(trainer, draws)
        product.time()
    whole = medians(wholes)
    lines = [table_of_phases(trainer, whole.seconds, whole.cpu, product.speed), product.describe()]
    lines.append(
        f"peak memory: {memory / 2**30:.2f} GiB, of which {memory_before / 2**30:.2f} before networks and data"
    )
    waited = sum(cost.seconds for cost in trainer.costs.noted["data"]) / periods / trainer.kimg_of_period
    lines.append(f"waiting for data: {waited / whole.seconds:.2%} of the time (aim: at most 2 %)")
    by_key, batched = (seconds_of_draws(trainer, draws, kind) for kind in ("by key", "batched"))
    step = whole.seconds * trainer.config.batch / 1000
    lines.append(
        f"draws of a step: by key {1000 * by_key:.2f} ms, batched {1000 * batched:.2f} ms; the difference is "
        f"{(by_key - batched) / step:.2%} of a step (aim: at most 1 %)"
    )
    return "\n".join(lines)


def table_of_phases(trainer: TimedTrainer, seconds: float, cpu: float, speed: float) -> str:
    """Seconds of each phase. seconds, cpu: of all per kimg. speed: of the matrix product."""
    steps_per_kimg = 1000 / trainer.config.batch
    watch, rows = trainer.stopwatch.collect(), []
    rest_seconds, rest_cpu = seconds, cpu
    for phase in trainer.phases:
        each, times = median(watch[f"Timing/{phase.name}_sec"]), steps_per_kimg / phase.interval
        phase_cpu = medians(trainer.costs.noted[phase.name]).cpu * times
        rest_seconds, rest_cpu = rest_seconds - each * times, rest_cpu - phase_cpu
        done = count_operations(trainer, phase)
        rows.append([phase.name, f"{each:.4f}", f"1 in {phase.interval}", f"{each * times:.2f}", f"{phase_cpu:.2f}"])
        rows[-1] += [f"{done / 1e9:.1f}", f"{done / each / speed:.0%}"]
    rows.append(["rest (data, EMA)", "", "", f"{rest_seconds:.2f}", f"{rest_cpu:.2f}", "", ""])
    rows.append(["together", "", "", f"{seconds:.2f}", f"{cpu:.2f}", "", ""])
    return format_table(["phase", "s each", "steps", "s per kimg", "CPU s per kimg", "GFLOP", "share"], rows)


def count_operations(trainer: TimedTrainer, phase: Phase) -> int:
    """Operations of convolutions and matrix products in one application of a phase; its gradients are dropped."""
    fakes = trainer.fakes.draw(0, phase.name, range(phase.fakes), phase.directed) if phase.fakes else None
    phase.network.requires_grad_(True)
    with OperationCounter() as counter:
        for real in trainer.reals.next_parts():
            phase.accumulate(Part(real, fakes), 1, Sums())
    phase.network.requires_grad_(False)
    phase.optimizer.zero_grad(set_to_none=True)
    return counter.total


def time_draws(trainer: TimedTrainer, costs: Costs) -> None:
    """Draw what each phase needs, by key and all at once in turn."""
    for _ in range(DRAWS):
        for phase in (phase for phase in trainer.phases if phase.fakes):
            with costs.note(f"by key {phase.name}"):
                trainer.fakes.draw(trainer.state.step, phase.name, range(phase.fakes), phase.directed)
                synchronize(trainer.world.device)
            with costs.note(f"batched {phase.name}"):
                draw_batched(trainer.fakes, phase.fakes, phase.directed)
                synchronize(trainer.world.device)


def draw_batched(source: FakeSource, count: int, directed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """As many numbers as FakeSource.draw draws, in one draw of the global generator; and class labels."""
    size = source.noise_size + 2 * source.z_dim + directed * math.prod(source.image_shape)
    drawn = torch.randn([count, size], device=source.device)
    return drawn, source.labels[torch.randint(len(source.labels), [count], device=source.device)]


def seconds_of_draws(trainer: TimedTrainer, costs: Costs, kind: str) -> float:
    """Seconds of the draws of a step, on average over a period."""
    phases = [phase for phase in trainer.phases if phase.fakes]
    return sum(medians(costs.noted[f"{kind} {phase.name}"]).seconds / phase.interval for phase in phases)


# --- generation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def time_generation(images: int) -> str:
    """Generate images at 256×256 with the networks of `--cfg=auto`, one at a time."""
    keep_freed_memory()
    device = World().device
    config = configure(Setup(256, {})).generator
    generator = Generator(config).eval().to(device)

    def generate() -> None:
        generator(torch.randn(1, config.z_dim, device=device), noise_mode="const")
        synchronize(device)

    generate()
    memory = peak_memory(device)
    product, costs = MatrixProduct(device), Costs()
    for image in range(images):
        if image % 4 == 0:
            product.time()
        with costs.note("image"):
            generate()
    with OperationCounter() as counter:
        generate()
    seconds, cpu = medians(costs.noted["image"])
    return (
        f"{seconds:.3f} s and {cpu:.3f} CPU s an image, {counter.total / 1e9:.1f} GFLOP, share "
        f"{counter.total / seconds / product.speed:.0%}\n{product.describe()}\n"
        f"peak memory: {memory / 2**30:.2f} GiB"
    )

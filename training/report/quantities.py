"""What the page draws and tabulates, and what it says of it: names of statistics, titles, how to read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from training.recipes import TARGET
from training.report.run_folder import BAD_STEPS, RunFolder, Tick, number

LAST = 5  # ticks that the table's means are taken of
_POINTS = 150  # of a line; more ticks are put together


@dataclass(frozen=True)
class Quantity:
    """One line of a chart, and a row of the table."""

    name: str  # in the chart's legend
    title: str  # in the table
    statistic: str  # in stats.jsonl
    total: bool = False  # the table shows the sum over the run, not a mean
    from_second: bool = False  # the first tick is a single step, and says nothing of the speed


@dataclass(frozen=True)
class Chart:
    """A panel: one or two quantities."""

    key: str
    title: str
    unit: str
    hint: str  # how to read it
    quantities: tuple[Quantity, ...]
    limits: tuple[float | None, float | None] = (None, None)  # of the axis
    target: bool = False  # a line at the target of the signs of reals


@dataclass(frozen=True)
class Section:
    """Charts that are read together."""

    key: str
    title: str
    words: str  # what they answer
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Line:
    """Points of a line."""

    kimg: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]  # smallest and largest tick of each point
    high: tuple[float, ...]


def _one(key: str, title: str, unit: str, hint: str, quantity: Quantity) -> Chart:
    """A chart of one quantity from 0 up."""
    return Chart(key, title, unit, hint, (quantity,), (0, None))


MEASURES = ("measures", "Measures", "Does it still improve? Values of the averaged generator at snapshots.")
SECTIONS = (
    Section(
        "balance",
        "Generator against discriminator",
        "Do the two keep up with each other? Low losses alone say nothing of the quality of the fakes.",
        (
            Chart(
                "scores",
                "Scores",
                "logit",
                "The discriminator's logits, above 0 for what it takes for real. A steady gap is healthy. A gap that "
                "grows without end: the discriminator wins, and the fakes stop getting better.",
                (
                    Quantity("real", "Scores of reals", "Loss/scores/real"),
                    Quantity("fake", "Scores of fakes", "Loss/scores/fake"),
                ),
            ),
            _one(
                "loss-g",
                "Loss of the generator",
                "loss",
                "0.69 if the discriminator tells nothing apart. It grows as the discriminator wins.",
                Quantity("", "Loss of the generator", "Loss/G/loss"),
            ),
            _one(
                "loss-d",
                "Loss of the discriminator",
                "loss",
                "1.39 if it tells nothing apart, 0 if it is sure of everything.",
                Quantity("", "Loss of the discriminator", "Loss/D/loss"),
            ),
        ),
    ),
    Section(
        "overfitting",
        "Overfitting and augmentation",
        "Does the discriminator learn its training slices by heart?",
        (
            Chart(
                "signs",
                "Signs of the scores",
                "mean sign",
                "Of reals, this is r_t of the ADA paper: 0 if the discriminator guesses, 1 if it knows every slice. "
                "With few slices it climbs towards 1. Dashed: the target of adaptive augmentation.",
                (
                    Quantity("real", "Signs of reals, r_t", "Loss/signs/real"),
                    Quantity("fake", "Signs of fakes", "Loss/signs/fake"),
                ),
                (-1.05, 1.05),
                target=True,
            ),
            _one(
                "augment",
                "Strength of augmentation",
                "p",
                "Adaptive augmentation raises p while r_t is above its target, and lowers it below. From 0.8 on, "
                "augmentations may leak into the fakes.",
                Quantity("", "Strength of augmentation, p", "Progress/augment"),
            ),
            _one(
                "label-share",
                "Share of the labels",
                "share",
                "Of the discriminator's squared gradient, what belongs to the label maps. Near 0, it would judge the "
                "contrasts alone.",
                Quantity("", "Share of the labels", "Loss/D/label_share"),
            ),
        ),
    ),
    Section(
        "regularization",
        "Regularization",
        "How steep are the two networks?",
        (
            _one(
                "r1",
                "R1 penalty",
                "squared gradient",
                "Of the scores at reals, before its weight gamma. If it grows and grows, a larger gamma holds it.",
                Quantity("", "R1 penalty", "Loss/r1_penalty"),
            ),
            _one(
                "path-length",
                "Path length",
                "length",
                "How far a fake moves with its style w. It settles.",
                Quantity("", "Path length", "Loss/G/pl_length"),
            ),
            _one(
                "pl-penalty",
                "Path length penalty",
                "squared deviation",
                "Squared deviation of path lengths from their running mean, before its weight.",
                Quantity("", "Path length penalty", "Loss/pl_penalty"),
            ),
        ),
    ),
    Section(
        "resources",
        "Speed, memory, health",
        "Does the machine do well?",
        (
            _one(
                "speed",
                "Speed",
                "seconds per kimg",
                "Without the first tick, which is a single step.",
                Quantity("", "Seconds per kimg", "Timing/sec_per_kimg", from_second=True),
            ),
            _one(
                "maintenance",
                "Maintenance",
                "seconds per tick",
                "What was spent beside training: snapshots, states, sheets, measures.",
                Quantity("", "Maintenance, seconds per tick", "Timing/maintenance_sec"),
            ),
            _one(
                "cpu-memory",
                "Memory of the process",
                "GiB",
                "Of the first process. It should level off after the first ticks.",
                Quantity("", "Memory of the process, GiB", "Resources/cpu_mem_gb"),
            ),
            _one(
                "gpu-memory",
                "Peak memory of the GPU",
                "GiB",
                "Of the first process's tensors, the peak of each tick.",
                Quantity("", "Peak memory of the GPU, GiB", "Resources/peak_gpu_mem_gb"),
            ),
            _one(
                "bad-steps",
                "Bad steps",
                "per tick",
                "Steps that were left out, as a gradient was no finite number.",
                Quantity("", "Bad steps, in the whole run", BAD_STEPS, total=True),
            ),
        ),
    ),
)


def charts() -> Iterator[Chart]:
    """All charts of all sections."""
    for section in SECTIONS:
        yield from section.charts


# --- values -----------------------------------------------------------------------------------------------------------


def value_of(tick: Tick, statistic: str) -> tuple[float, float] | None:
    """Number and mean of a statistic in a tick. Of bad steps: their number, over all phases."""
    if statistic == BAD_STEPS:
        found = [value for name, value in tick.values.items() if name.startswith(f"{BAD_STEPS}/")]
        return (1.0, sum(round(value.num * value.mean) for value in found)) if found else None
    value = tick.values.get(statistic)
    return None if value is None else (value.num, value.mean)


def points_of(run: RunFolder, quantity: Quantity) -> list[tuple[float, float, float]]:
    """kimg, number, mean of all ticks that have a quantity."""
    ticks = run.ticks[1:] if quantity.from_second and len(run.ticks) > 1 else run.ticks
    found = ((tick.kimg, value_of(tick, quantity.statistic)) for tick in ticks)
    return [(kimg, *value) for kimg, value in found if value is not None]


def is_there(run: RunFolder, quantity: Quantity) -> bool:
    """Whether a run has a quantity. Memory of a GPU that is 0 is none, and so are no bad steps at all."""
    points = points_of(run, quantity)
    only_if_any = quantity.statistic in (BAD_STEPS, "Resources/peak_gpu_mem_gb")
    return bool(points) and not (only_if_any and all(mean == 0 for _, _, mean in points))


def line_of(run: RunFolder, quantity: Quantity) -> Line:
    """The line of a quantity. Where a run has more than _POINTS ticks, a point stands for several."""
    points = points_of(run, quantity)
    step = -(-len(points) // _POINTS) or 1
    groups = [points[n : n + step] for n in range(0, len(points), step)]
    means = [[mean for _, _, mean in group] for group in groups]
    return Line(
        tuple(sum(kimg for kimg, _, _ in group) / len(group) for group in groups),
        tuple(sum(values) / len(values) for values in means),
        tuple(map(min, means)),
        tuple(map(max, means)),
    )


def last_mean(run: RunFolder, quantity: Quantity, ticks: int = LAST) -> float | None:
    """Mean of all values of a quantity in the last ticks; of a total, the sum over the run. None: there is none."""
    points = points_of(run, quantity)
    if not points:
        return None
    if quantity.total:
        return sum(mean for _, _, mean in points)
    last = points[-ticks:]
    numbers = sum(num for _, num, _ in last)
    if numbers <= 0:
        return sum(mean for _, _, mean in last) / len(last)
    return sum(num * mean for _, num, mean in last) / numbers


def mean_of(run: RunFolder, statistic: str) -> float | None:
    """Mean of a statistic in the last ticks."""
    return last_mean(run, Quantity("", "", statistic))


def targets_of(runs: Sequence[RunFolder]) -> tuple[float, ...]:
    """The targets of the signs of reals; the usual one where no run has any."""
    told = [number(run.options.get("augment.target")) for run in runs]
    return tuple(sorted({target for target in told if target is not None})) or (TARGET,)

"""How runs stand, in few words: progress, and what stands out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from dnnlib.text import count, format_time
from training.ada import LEAKS
from training.report.figures import color_of
from training.report.quantities import LAST, Quantity, last_mean, mean_of, targets_of, value_of
from training.report.run_folder import BAD_STEPS, RunFolder, number, show_kimg

RUNNING, FINISHED, STOPPED = "running", "finished", "stopped"
_SILENT = 5  # ticks of time without a line that are worth a word
_ABOVE = 0.15  # of the target; signs of reals above it are worth a word
_BLIND = 0.02  # share of the labels below which the discriminator hardly looks at them


@dataclass(frozen=True)
class Card:
    """A run at a glance."""

    name: str
    color: str
    word: str  # running, finished or stopped
    words: str  # how far it is
    kimg: float
    length: float | None
    facts: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]  # what stands out


def status_word(run: RunFolder) -> str:
    """Whether a run is running, finished or stopped.

    It runs if a process holds its folder's lock. Otherwise it is finished if all images were shown.
    """
    if run.in_use:
        return RUNNING
    return FINISHED if run.finished else STOPPED


def status_words(run: RunFolder) -> str:
    """How far a run is, behind its status: as in "at 24 of 40 kimg"."""
    if not run.ticks:
        return "before the first tick"
    if status_word(run) == FINISHED:
        return f"after {show_kimg(run.kimg)} kimg"
    return f"at {show_kimg(run.kimg)}" + (f" of {run.length:g} kimg" if run.length is not None else " kimg")


def card_of(run: RunFolder, place: int, now: float | None = None) -> Card:
    """A run at a glance. now: seconds since 1970."""
    return Card(
        run.name,
        color_of(place),
        status_word(run),
        status_words(run),
        run.kimg,
        run.length,
        tuple(_facts(run)),
        tuple(remarks_of(run, time.time() if now is None else now)),
    )


def _facts(run: RunFolder) -> Iterator[tuple[str, str]]:
    if not run.ticks:
        return
    last = run.ticks[-1]
    seconds = value_of(last, "Timing/total_sec")
    if seconds is not None:
        yield "time", format_time(seconds[1])
    per_kimg = last_mean(run, Quantity("", "", "Timing/sec_per_kimg", from_second=True))
    if per_kimg is not None:
        yield "speed", f"{per_kimg:.3g} s/kimg"
        if run.length is not None and not run.finished:
            yield "left", format_time((run.length - run.kimg) * per_kimg)
    if last.time is not None:
        yield "last tick", time.strftime("%Y-%m-%d %H:%M", time.localtime(last.time))
    if (signs := mean_of(run, "Loss/signs/real")) is not None:
        yield "signs of reals", f"{signs:.2f}".replace("-", "−")
    if (p := _p_now(run)) is not None:
        yield "p", f"{p:.2f}"
    bad = last_mean(run, Quantity("", "", BAD_STEPS, total=True))
    if bad is not None:
        yield "bad steps", f"{bad:.0f}"
    if run.continued:
        yield "continued", "at " + ", ".join(show_kimg(kimg) for kimg in run.continued[-4:]) + " kimg"
    state = _state_kimg(run)
    if state is not None and status_word(run) == STOPPED:
        yield "newest state", f"{show_kimg(state)} kimg"


def _p_now(run: RunFolder) -> float | None:
    """The newest p. Its mean over the last ticks would lag behind the status line."""
    return last_mean(run, Quantity("", "", "Progress/augment"), ticks=1)


def _state_kimg(run: RunFolder) -> float | None:
    """Kimg of the newest state, from which a run goes on."""
    batch = number(run.options.get("batch"))
    return None if run.state_step is None or batch is None else run.state_step * batch / 1000


# --- what stands out --------------------------------------------------------------------------------------------------


def remarks_of(run: RunFolder, now: float) -> Iterator[str]:
    """What stands out in the last ticks, in sentences, and what can't be read."""
    if status_word(run) == RUNNING and run.ticks:
        yield from _silence(run, now)
    p = _p_now(run)
    signs, (target,) = mean_of(run, "Loss/signs/real"), targets_of([run])
    # At its start, every discriminator is far ahead.
    if signs is not None and signs > target + _ABOVE and len(run.ticks) > LAST:
        yield (
            f"Signs of reals are {signs:.2f} over the last {LAST} ticks, above {target:g}: the discriminator begins to "
            f"know its training slices by heart; {_help(run)}."
        )
    if p is not None and p >= LEAKS:
        yield f"p is {p:.2f}: from {LEAKS:g} on, augmentations may leak into the fakes."
    share = mean_of(run, "Loss/D/label_share")
    if share is not None and share < _BLIND:
        yield f"The share of the labels is {share:.3f}: the discriminator hardly looks at the label maps."
    bad = sum(value[1] for tick in run.ticks[-LAST:] if (value := value_of(tick, BAD_STEPS)) is not None)
    if bad:
        yield f"{count(round(bad), 'bad step')} in the last {LAST} ticks: gradients were not finite."
    yield from run.remarks


def _help(run: RunFolder) -> str:
    """What works against overfitting."""
    if not any(name.startswith("augment.") for name in run.options):
        return "--aug=ada works against it"
    adapts = run.options.get("augment.target") is not None
    return "p rises while they are above it" if adapts else "a larger --p works against it"


def _silence(run: RunFolder, now: float) -> Iterator[str]:
    """Say that a running run has been silent for long, by the pace of its ticks."""
    last = run.ticks[-1]
    tick = value_of(last, "Timing/sec_per_tick")
    if last.time is None or tick is None:
        return
    silent = now - last.time
    if silent > 600 and silent > _SILENT * tick[1]:
        yield f"No tick for {format_time(silent)}; one takes about {format_time(tick[1])}."

"""What a run folder tells, read while a training may be writing there, after a kill, or from a copy."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dnnlib.config import shorten
from dnnlib.errors import UserError
from dnnlib.runs import is_in_use
from dnnlib.system import plain_text
from dnnlib.text import count
from training.resuming import OPTIONS_FILE

STATS_FILE, LOG_FILE = "stats.jsonl", "log.txt"
KIMG, CONTINUED, BAD_STEPS = "Progress/kimg", "Progress/continued_kimg", "Health/bad_steps"
_LOG_TAIL = 12  # lines
_SHEET = re.compile(r"fakes(init|\d{6,})\.png")
_STATE = re.compile(r"training-state-(\d{6,})\.safetensors")
# Beginnings of the lines of the log that describe a run.
FACTS = (
    *("Data", "Channels", "Generator", "Discrim", "Minibatch"),
    *("Device", "Software", "Precision", "Operators", "By hand"),
)
_FACT = re.compile(rf"({'|'.join(FACTS)})[.:]? +(\S.*)")


class Value(NamedTuple):
    """Number, mean and standard deviation of a statistic's values in one tick."""

    num: float
    mean: float
    std: float


@dataclass(frozen=True)
class Tick:
    """A line of stats.jsonl."""

    kimg: float
    values: Mapping[str, Value]  # finite ones only
    time: float | None  # seconds since 1970


@dataclass(frozen=True)
class Sheet:
    """A picture of fakes."""

    kimg: float
    path: Path


@dataclass(frozen=True)
class Measured:
    """A line of metric-<name>.jsonl."""

    kimg: float
    value: float


@dataclass(frozen=True)
class RunFolder:
    """All that a run folder tells."""

    name: str
    path: Path
    in_use: bool  # a process trains there
    ticks: tuple[Tick, ...]
    measures: Mapping[str, tuple[Measured, ...]]
    sheets: tuple[Sheet, ...]  # by kimg
    options: Mapping[str, Any]  # of the configuration, nested ones as in "generator.z_dim"; empty if unknown
    request: Mapping[str, Any]  # what the user asked for, in the same form
    data: str | None  # SHA-256 of the archive
    facts: Mapping[str, str]  # what the log said of data, networks and machine when the run began or went on
    log: tuple[str, ...]  # its last lines
    state_step: int | None  # of the newest state
    remarks: tuple[str, ...]  # what can't be read, in sentences

    @property
    def kimg(self) -> float:
        """Real images shown until the last tick, in thousands."""
        return self.ticks[-1].kimg if self.ticks else 0.0

    @property
    def length(self) -> float | None:
        """Length of the run in kimg, if it is known."""
        found = number(self.options.get("kimg"))
        return found if found is not None and found > 0 else None

    @property
    def finished(self) -> bool:
        """Whether all images were shown. Statistics have seven digits."""
        return self.length is not None and bool(self.ticks) and self.kimg >= self.length * (1 - 1e-6)

    @property
    def continued(self) -> tuple[float, ...]:
        """Kimg at which the run was continued by another process. Empty for runs that don't tell."""
        told = [tick.values[CONTINUED].mean for tick in self.ticks if CONTINUED in tick.values]
        return tuple(now for before, now in zip([0.0, *told], told, strict=False) if now != before)

    def picture(self, name: str) -> Path | None:
        """A picture of the folder, if it is there."""
        path = self.path / name
        return path if path.is_file() else None


def number(value: Any) -> float | None:
    """A finite number as a float; None for all else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


# --- reading ----------------------------------------------------------------------------------------------------------


def read_run_folder(path: Path, name: str | None = None) -> RunFolder:
    """Read a run folder. name: how the page calls it; by default the folder's name.

    What is damaged is left out and remarked. Raises UserError if there is no run.
    """
    refuse_other_folders(path)
    remarks: list[str] = []
    content = _read_options(path, remarks)
    ticks = tuple(_continuous(_read_lines(path / STATS_FILE, _tick, remarks)))
    log = _read_log(path / LOG_FILE)
    return RunFolder(
        name=plain_text(name if name is not None else path.resolve().name),
        path=path,
        in_use=is_in_use(path),
        ticks=ticks,
        measures=_read_measures(path, remarks),
        sheets=tuple(sorted(_sheets(path), key=lambda sheet: (sheet.kimg, sheet.path.name))),
        options=dict(_flat(content.get("config"))),
        request=dict(_flat(content.get("request"))),
        data=content.get("data_sha256") if isinstance(content.get("data_sha256"), str) else None,
        facts={match[1]: match[2] for line in log if (match := _FACT.fullmatch(line))},
        log=tuple(log[-_LOG_TAIL:]),
        state_step=max((int(m[1]) for n in os.listdir(path) if (m := _STATE.fullmatch(n))), default=None),
        remarks=tuple(remarks),
    )


def refuse_other_folders(path: Path) -> None:
    """Raise UserError if a path is no run folder."""
    what = f"a run folder of train.py holds {OPTIONS_FILE} and {STATS_FILE}"
    if path.is_file():
        raise UserError(f"{path} is a file; expected a run folder: give {path.parent}")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; {what}")
    if not any((path / name).is_file() for name in (OPTIONS_FILE, STATS_FILE)):
        inside = sorted(n for n in os.listdir(path) if (path / n / OPTIONS_FILE).is_file())
        hint = f"; did you mean {path / inside[0]}?" if inside else ""
        raise UserError(f"{path} holds no run: {what}{hint}")


def _read_options(folder: Path, remarks: list[str]) -> dict[str, Any]:
    path = folder / OPTIONS_FILE
    if not path.is_file():
        remarks.append(f"{OPTIONS_FILE} is missing, so neither the options nor the length of the run are known.")
        return {}
    content = _parse(path.read_bytes())
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        remarks.append(f"{OPTIONS_FILE} can't be read, so neither the options nor the length of the run are known.")
        return {}
    return content


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested objects by names such as generator.z_dim."""
    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, dict) and prefix.count(".") < 3:
            yield from _flat(value, f"{prefix}{plain_text(name)}.")
        else:
            yield f"{prefix}{plain_text(name)}", value


def _parse(text: bytes) -> Any:
    """Parse JSON, with None in place of NaN and infinity. None: it is damaged."""
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):  # not UTF-8 is a ValueError as well
        return None


def _read_lines(path: Path, record: Callable[[Any], Any], remarks: list[str]) -> list[Any]:
    """Read the records of a file of JSON lines. The last line may be half written, which is no damage."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    found = [None if not line.strip() else record(_parse(line)) for line in lines]
    damaged = sum(one is None and bool(line.strip()) for one, line in zip(found[:-1], lines, strict=False))
    if damaged:
        remarks.append(f"{plain_text(path.name)}: left out {count(damaged, 'line')} that can't be read.")
    return [one for one in found if one is not None]


def _tick(line: Any) -> Tick | None:
    if not isinstance(line, dict):
        return None
    values = {name: found for name, value in line.items() if (found := _value(value)) is not None}
    return Tick(values[KIMG].mean, values, number(line.get("timestamp"))) if KIMG in values else None


def _value(value: Any) -> Value | None:
    if not isinstance(value, dict) or (mean := number(value.get("mean"))) is None:
        return None
    num, std = number(value.get("num")), number(value.get("std"))
    return Value(1.0 if num is None else num, mean, std or 0.0)


def _continuous(ticks: list[Tick]) -> list[Tick]:
    """Ticks with growing kimg. A run that went on from an earlier state without cutting its lines back wrote anew."""
    kept: list[Tick] = []
    for tick in ticks:
        while kept and kept[-1].kimg >= tick.kimg:
            kept.pop()
        kept.append(tick)
    return kept


def _read_measures(folder: Path, remarks: list[str]) -> dict[str, tuple[Measured, ...]]:
    found = {}
    for name in sorted(os.listdir(folder)):
        if (match := re.fullmatch(r"metric-(.+)\.jsonl", name)) is None:
            continue
        # A value that is not finite is null, and no damage.
        lines = [one for one in _read_lines(folder / name, lambda line: line, remarks) if isinstance(one, dict)]
        pairs = [(number(line.get("kimg")), number(line.get("value"))) for line in lines]
        measured = {kimg: Measured(kimg, value) for kimg, value in pairs if kimg is not None and value is not None}
        if measured:
            found[plain_text(match[1])] = tuple(measured[kimg] for kimg in sorted(measured))
    return found


def _sheets(folder: Path) -> Iterator[Sheet]:
    for name in os.listdir(folder):
        if match := _SHEET.fullmatch(name):
            yield Sheet(0.0 if match[1] == "init" else float(match[1]), folder / name)


def _read_log(path: Path) -> list[str]:
    if not path.is_file():
        return []
    text = path.read_bytes().decode(errors="replace")
    return [shorten_line(line) for line in text.splitlines() if line.strip()]


def shorten_line(line: str) -> str:
    """A line of a log, cut to what a page shows."""
    return line if len(line) <= 400 else line[:400] + "…"


def show_kimg(kimg: float) -> str:
    """A position in a run, as in 0.016, 4.01, 24 or 25000."""
    return f"{kimg:.0f}" if kimg >= 100 else f"{kimg:.3g}"


def show_option(value: Any) -> str:
    """An option's value in words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(show_option, value[:50])) or "none"
    text = plain_text(str(value))
    return text if len(text) <= 200 else shorten(text)

"""Arms of an experiment: which slices a U-Net learns from, and how they are augmented while it trains.

    R           all slices of the archive of real slices
    3F          fakes: three times as many as R
    3A          R's three flips: left-right, up-down, both
    3F+R*full   fakes and R together, augmented by `full`
    R; F; F+R   several arms

This file imports neither torch nor numpy, so that --help answers at once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dnnlib.errors import UserError
from dnnlib.text import name_some

NONE, FLIP, FULL = AUGMENTATIONS = ("none", "flip", "full")
TABLES = {"table1": "R; F; F+R", "table2": "R; F; F+R; 3F+R; 3A+R"}  # the paper's tables -> their arms
MOST_FAKES = 99  # times R
MOST_FLIPS = 3  # a slice has no more
_FORM = "expected R, F and A joined by +, with a whole number before F and A if there are more, such as 3F+R or 3A+R"
_TITLES = {NONE: "", FLIP: ", flipped", FULL: ", augmented"}


@dataclass(frozen=True)
class Arm:
    """The slices that a U-Net learns from, in units of R, the number of real slices."""

    real: bool  # R itself
    fakes: int = 0  # so many times R
    flips: int = 0  # the first so many of left-right, up-down and both, of every slice of R
    augment: str = NONE  # one of AUGMENTATIONS
    occurrence: int = 0  # arms before it that are the same

    def __post_init__(self) -> None:
        if not (self.real or self.fakes or self.flips):
            raise ValueError("an arm without slices")
        if not (0 <= self.fakes <= MOST_FAKES and 0 <= self.flips <= MOST_FLIPS and self.occurrence >= 0):
            raise ValueError(f"{self.fakes} times fakes, {self.flips} flips, occurrence {self.occurrence}")
        if self.augment not in AUGMENTATIONS:
            raise ValueError(f"augmentation {self.augment!r}")

    @property
    def uses_fakes(self) -> bool:
        return self.fakes > 0

    @property
    def uses_real(self) -> bool:
        """Whether it learns from real slices, as they are or flipped."""
        return self.real or self.flips > 0

    @property
    def notation(self) -> str:
        """What `parse_arm` takes, in the paper's order, such as 3F+R*full."""
        terms = [_term(self.fakes, "F"), _term(self.flips, "A"), _term(int(self.real), "R")]
        augment = "" if self.augment == NONE else f"*{self.augment}"
        return "+".join(filter(None, terms)) + augment

    @property
    def name(self) -> str:
        """The notation, numbered if the arm is there several times: R (2)."""
        return self.notation + self._number

    @property
    def title(self) -> str:
        """The name in the paper's manner, such as 300 % F + 100 % R."""
        counts = {"F": self.fakes, "A": self.flips, "R": int(self.real)}
        terms = (f"{100 * times} % {letter}" for letter, times in counts.items() if times)
        return " + ".join(terms) + _TITLES[self.augment] + self._number

    @property
    def slug(self) -> str:
        """The name for files, such as 3F-R-full or R-2nd."""
        words = re.split(r"[+*]", self.notation)
        return "-".join(words + [_ordinal(self.occurrence + 1)] * bool(self.occurrence))

    @property
    def _number(self) -> str:
        return f" ({self.occurrence + 1})" if self.occurrence else ""

    def num_slices(self, num_real: int) -> int:
        """Number of slices that it learns from. num_real: number of slices of R."""
        return (self.real + self.fakes + self.flips) * num_real

    def seed(self, base: int, replicate: int) -> int:
        """Seed of the U-Net of a replicate 1, 2, …; more replicates don't change it."""
        return base + (replicate - 1) + 1000 * self.occurrence

    def __str__(self) -> str:
        return self.name


def parse_arms(text: str) -> tuple[Arm, ...]:
    """Arms separated by semicolons, or the name of a table. Equal arms are numbered.

    Raises UserError for any other text. `format_arms` is its inverse.
    """
    text = TABLES.get(text.strip().lower(), text)
    before: Counter[Arm] = Counter()
    arms = []
    for one in text.split(";"):
        arm = parse_arm(one)
        arms.append(replace(arm, occurrence=before[arm]))
        before[arm] += 1
    return tuple(arms)


def format_arms(arms: Sequence[Arm]) -> str:
    """The text that `parse_arms` makes these arms of."""
    return "; ".join(arm.notation for arm in arms)


def baseline(arms: Sequence[Arm]) -> Arm | None:
    """The arm of real slices alone: R if it is there, else one that augments them. None if there is none."""
    alone = [arm for arm in arms if arm.real and not (arm.fakes or arm.flips)]
    return min(alone, key=lambda arm: arm.augment != NONE, default=None)


def parse_arm(text: str) -> Arm:
    """One arm. Case, spaces and the order of its terms don't matter. Raises UserError for any other text."""
    if text.strip().lower() in TABLES:
        arms = TABLES[text.strip().lower()]
        raise UserError(
            f"{text.strip()} is no arm but a table: it can only stand alone, as the arms of an experiment. "
            f"Its arms are {arms}"
        )
    terms, star, augment = text.partition("*")
    augment = augment.strip().lower() if star else NONE
    if augment not in AUGMENTATIONS:
        raise UserError(f"{_quote(text)}: expected one of {', '.join(AUGMENTATIONS)} after *, such as R*full")
    counts: dict[str, int] = {}
    for term in terms.split("+"):
        letter, times = _parse_term(term, text)
        if letter in counts:
            raise UserError(f"{_quote(text)} has {letter} twice: write one number, such as 2F for F+F")
        counts[letter] = times
    return Arm(counts.get("R", 0) > 0, counts.get("F", 0), counts.get("A", 0), augment)


def _parse_term(term: str, text: str) -> tuple[str, int]:
    """Letter and number of a term. text: the whole arm, for messages."""
    match = re.fullmatch(r"\s*([0-9]*)\s*([FAR])\s*", term, re.IGNORECASE)
    if match is None:
        lacks = "an arm is empty" if not text.strip() else f"{_quote(text)} is no arm"
        raise UserError(f"{lacks}: {_FORM}")
    letter, digits = match[2].upper(), match[1].lstrip("0")
    # Python refuses to parse thousands of digits, and no number here has three.
    times = int(digits[:3] or 0) if match[1] else 1
    if letter == "R" and match[1]:
        raise UserError(f"{_quote(text)}: R has no number before it, as all real slices are taken once: write R")
    most = MOST_FAKES if letter == "F" else MOST_FLIPS
    if not 1 <= times <= most:
        what = (
            "times as many fakes as real slices, no percentage" if letter == "F" else "flips: left-right, up-down, both"
        )
        raise UserError(f"{_quote(text)}: expected 1 to {most} before {letter} ({what}), such as 3{letter}")
    return letter, times


def _quote(text: str) -> str:
    return name_some([text.strip()])


def _term(times: int, letter: str) -> str:
    """3F, F, or nothing."""
    return f"{times if times > 1 else ''}{letter}" * bool(times)


def _ordinal(n: int) -> str:
    """1st, 2nd, 3rd, 4th, …"""
    return f"{n}{'th' if n // 10 % 10 == 1 else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"

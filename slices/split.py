"""Splits by patient into a train part and a test part."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnlib import config, files
from dnnlib.errors import UserError
from dnnlib.text import name_some

SPLIT_FILE = "split.json"
SPLIT_SEED = 0  # unless another one is given
TEST_FRACTION = 0.1  # of the patients, unless another one is given
# Limits of --test-fraction, for `dnnlib.cli.option`.
FRACTION_LIMITS: dict[str, Any] = {"above": 0, "below": 1, "noun": "a share", "example": TEST_FRACTION}


@dataclass(frozen=True)
class Split:
    """The content of split.json."""

    train: tuple[str, ...]  # names of patients
    test: tuple[str, ...]


def shuffle_names(names: Iterable[str], seed: int) -> list[str]:
    """Sort names by a hash of seed and name. Adding a name doesn't change the order of the others."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())


def draw_split(patients: Iterable[str], test_fraction: float, seed: int) -> Split:
    """Divide patients by chance. The split depends on their names, the fraction and the seed only.

    The first patients in the order of `shuffle_names` are for testing. So adding a patient to a release moves hardly
    any other patient. Each part has at least one patient.
    """
    names = sorted(set(patients))
    if len(names) < 2:
        raise UserError(
            f"{len(names)} patient ({', '.join(names)}) can't be split into train and test: give more patients, "
            "or a --dest that ends in .zip for a single archive"
        )
    shuffled = shuffle_names(names, seed)
    # At least one patient for testing, and at least one left for training.
    count = min(max(round(len(names) * test_fraction), 1), len(names) - 1)
    return Split(train=tuple(sorted(shuffled[count:])), test=tuple(sorted(shuffled[:count])))


def read_split(path: Path, patients: Iterable[str]) -> Split:
    """Read a split from a JSON file {"train": [names], "test": [names]}. It may leave patients out.

    Raises UserError if the file names a patient twice, or one that is not in `patients`.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}; expected a split")
    split = config.from_json(Split, files.read_json(path), str(path))
    named = Counter([*split.train, *split.test])
    if twice := [name for name, count in named.items() if count > 1]:
        raise UserError(f"{path}: names {name_some(twice)} more than once; a patient belongs to one side")
    if unknown := sorted(set(named) - set(patients)):
        raise UserError(f"{path}: names unknown patients: {name_some(unknown)}; is this the split of another release?")
    return split

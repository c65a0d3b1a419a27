"""Options of `dataset_tool.py inspect`, `merge`, `subset` and `split`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dnnlib.cli import Checked, option
from dnnlib.errors import UserError
from slices.split import FRACTION_LIMITS, SPLIT_SEED, TEST_FRACTION

PICTURED = 8  # slices in the picture of `inspect`
LARGEST_SEED = 2**32 - 1  # of numpy's RandomState


@dataclass(frozen=True)
class InspectOptions(Checked):
    """Options of `dataset_tool.py inspect`."""

    out: Path | None = option(f"Picture to write (.png): {PICTURED} slices with large lesions.", default=None)
    force: bool = option("Replace the picture if there is one.", switch=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and self.out.suffix.lower() != ".png":
            raise UserError(f"--out {self.out}: pictures are written as PNG; choose a name that ends in .png")


@dataclass(frozen=True)
class MergeOptions(Checked):
    """Options of `dataset_tool.py merge`."""

    dest: Path = option("Archive to write (.zip).")
    force: bool = option("Replace what is there.", switch=True)


@dataclass(frozen=True)
class SubsetOptions(Checked):
    """Options of `dataset_tool.py subset`. Exactly one of `slices` and `patients` is given."""

    dest: Path = option("Archive to write (.zip).")
    slices: int | None = option("Number of slices to take.", default=None, least=1)
    patients: int | None = option("Number of patients to take, with all their slices.", default=None, least=1)
    seed: int = option("Seed of the draw.", default=0, least=0, most=LARGEST_SEED)
    force: bool = option("Replace what is there.", switch=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.slices is None) == (self.patients is None):
            raise UserError("give either --slices or --patients: how many of them to take")


@dataclass(frozen=True)
class SplitOptions(Checked):
    """Options of `dataset_tool.py split`."""

    dest: Path = option("Folder that gets train.zip, test.zip and split.json.")
    test_fraction: float = option("Share of the patients in test.zip.", default=TEST_FRACTION, **FRACTION_LIMITS)
    seed: int = option(
        "Seed of the split; another one gives another split.", default=SPLIT_SEED, least=0, most=LARGEST_SEED
    )
    force: bool = option("Replace what is there.", switch=True)

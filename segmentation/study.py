"""A finished experiment in one record, Study. Tables, figures and the page are made from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmentation.archive_content import ArchiveContent
from segmentation.archive_facts import ArchiveFacts
from segmentation.arms import Arm
from segmentation.fit import TrainRecord
from segmentation.results import Row
from segmentation.scores import Evaluation, Target, headline_of, targets_of
from segmentation.statistics import Comparison
from slices.schema import Schema

GAIN = 0.005  # of the mean Dice from one to two times the steps: an arm that still gains more has not converged


@dataclass(frozen=True)
class Archive:
    """An archive of the experiment."""

    path: Path
    facts: ArchiveFacts
    snapshots: tuple[str, ...] = ()  # SHA-256 of the GANs' snapshots behind its fakes, as far as it tells


@dataclass(frozen=True)
class TrainedUNet:
    """One finished U-Net of the experiment."""

    model: Path  # unet.safetensors
    record: TrainRecord  # of its training
    evaluation: Evaluation  # on the test patients


@dataclass(frozen=True)
class Convergence:
    """The test Dice of one arm's first replicate, trained for ½, 1 and 2 times the steps of the experiment."""

    arm: str
    steps: tuple[int, int, int]
    dice: Mapping[str, tuple[float, float, float]]  # target's title -> mean over patients
    flagged: bool  # it still gains more than GAIN in the first target


@dataclass(frozen=True)
class Agreement:
    """Dice of real-trained U-Nets against labels that come with slices, over all slices together."""

    slices: str  # which: "test patients", or "fakes 1"
    dice: Mapping[str, float]  # target's title -> pooled Dice


@dataclass(frozen=True)
class Study:
    """A finished experiment."""

    name: str  # table1, table2 or arms
    title: str
    schema: Schema
    arms: tuple[Arm, ...]  # in the order of the rows of the table
    replicates: int
    options: Mapping[str, Any]  # of every training, as option -> value
    margin: float  # of non-inferiority
    real: Archive
    fakes: tuple[Archive, ...]  # one, or one per replicate; none if no arm uses fakes
    test: Archive
    val: Archive | None
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]  # the claims of the table, for every region
    unets: Mapping[tuple[str, int], TrainedUNet]  # (name of the arm, replicate) -> its U-Net
    convergence: tuple[Convergence, ...]  # empty if it was not measured
    content: Mapping[str, ArchiveContent]  # "real", "fakes 1", … -> what these slices show
    agreement: tuple[Agreement, ...]
    gans: int  # how many different GANs made the fakes
    notes: tuple[str, ...]  # what a reader of the numbers must know, in sentences
    commands: tuple[str, ...]  # that made it
    made: Mapping[str, str]  # versions, commit, hardware, time

    @property
    def targets(self) -> tuple[Target, ...]:
        """All targets: regions, then labels."""
        return targets_of(self.schema)

    @property
    def headline(self) -> tuple[Target, ...]:
        """The regions, or the labels if the schema has no regions. Claims are about these."""
        return headline_of(self.schema)

    @property
    def flagged(self) -> frozenset[str]:
        """Arms that have not converged."""
        return frozenset(one.arm for one in self.convergence if one.flagged)

"""Dice of a patient's stacked volume, per label class and per region, and its summary over patients."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segmentation.data import ArchiveFacts
from segmentation.unet import UNetInfo
from slices.schema import Schema

FORMAT, VERSION = "segmentation-dice", 2
MEASURE = (
    "Dice of each patient's stacked volume: all slices of the patient in the archive taken together. What is empty in "
    "truth and prediction counts 1, what is empty in one of them 0. Outside the head, where every contrast is 0, the "
    "prediction is background. labels: each class by itself; regions: unions of classes. sd: standard deviation over "
    "the patients (n - 1). truth, predicted: voxels. empty_truth: patients whose truth lacks the class or region. "
    "overlap: patients whom the U-Net knew from its training, by their own slices or through a GAN."
)


@dataclass(frozen=True)
class Target:
    """What a Dice is of: a label class or a region, by name, with its class indices."""

    kind: str  # "label" or "region"; names alone don't tell, BraTS has an ET of either kind
    name: str
    classes: tuple[int, ...]

    @property
    def title(self) -> str:
        return f"{self.name} ({self.kind})"


@dataclass(frozen=True)
class TargetDice:
    """Dice of one target in one patient, and its voxels in truth and prediction."""

    dice: float
    truth: int
    predicted: int


@dataclass(frozen=True)
class PatientDice:
    """One patient; `regions` and `labels` by name."""

    patient: str
    slices: int
    regions: dict[str, TargetDice]
    labels: dict[str, TargetDice]


@dataclass(frozen=True)
class Summary:
    """Dice over the patients; sd is None for one patient. empty_truth: patients whose truth lacks the target."""

    mean: float
    sd: float | None
    empty_truth: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.sd:.3f}" if self.sd is not None else f"{self.mean:.3f}"


@dataclass(frozen=True)
class ModelFacts:
    """Which U-Net was evaluated: file name, SHA-256, and what it says of itself."""

    file: str
    sha256: str
    info: UNetInfo


@dataclass(frozen=True)
class Evaluation:
    """One U-Net on one archive: the content of results.json.

    overlap: patients of the archive whom the U-Net knew, from their slices or through a GAN; empty unless allowed.
    """

    format: str
    version: int
    measure: str
    data: ArchiveFacts
    overlap: tuple[str, ...]
    regions: dict[str, Summary]
    labels: dict[str, Summary]
    patients: tuple[PatientDice, ...]
    model: ModelFacts  # last: it names every slice's patient, and a reader of the file looks for Dice


def targets_of(schema: Schema) -> tuple[Target, ...]:
    """The regions of a schema, then its classes."""
    regions = (Target("region", r.name, tuple(schema.region_indices(r))) for r in schema.regions)
    labels = (Target("label", name, (i,)) for i, name in enumerate(schema.class_names, start=1))
    return (*regions, *labels)


def of_target(record: Evaluation | PatientDice, target: Target) -> Summary | TargetDice:
    """The entry of a region or a label."""
    return (record.regions if target.kind == "region" else record.labels)[target.name]


def score_patient(patient: str, prediction: np.ndarray, truth: np.ndarray, schema: Schema) -> PatientDice:
    """Compare class indices [S, H, W] of all slices of a patient, as one volume."""
    targets = targets_of(schema)
    predicted_masks, true_masks = _masks(prediction, targets), _masks(truth, targets)
    dice = _dice(predicted_masks, true_masks)
    by_kind: dict[str, dict[str, TargetDice]] = {"region": {}, "label": {}}
    for t, target in enumerate(targets):
        voxels = int(true_masks[t].sum()), int(predicted_masks[t].sum())
        by_kind[target.kind][target.name] = TargetDice(dice[t], *voxels)
    return PatientDice(patient, len(truth), by_kind["region"], by_kind["label"])


def summarise(patients: Sequence[PatientDice], target: Target) -> Summary:
    """Mean and SD over the patients."""
    results = [of_target(patient, target) for patient in patients]
    dice = [r.dice for r in results]
    sd = statistics.stdev(dice) if len(dice) > 1 else None
    return Summary(statistics.fmean(dice), sd, sum(r.truth == 0 for r in results))


def _masks(indices: np.ndarray, targets: Sequence[Target]) -> np.ndarray:
    """Class indices [S, H, W] -> bool [T, S, H, W], one mask per target."""
    return np.stack([np.isin(indices, target.classes) for target in targets])


def _dice(prediction: np.ndarray, truth: np.ndarray) -> list[float]:
    """2 |P ∩ T| / (|P| + |T|) per target, of bool [T, S, H, W]; empty in both: 1, in one: 0."""
    import torch
    from monai.metrics import compute_dice  # takes seconds to import

    batch = [torch.from_numpy(masks)[None] for masks in (prediction, truth)]  # [1, T, S, H, W]
    return compute_dice(*batch, ignore_empty=False)[0].double().tolist()

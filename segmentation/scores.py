"""Dice of each examination, per label class and per region, and its mean and SD over patients."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segmentation.archive_facts import ArchiveFacts
from segmentation.unet import UNetInfo
from slices.schema import Schema

FORMAT, VERSION = "segmentation-dice", 3
MEASURE = (
    "Dice of each examination, over all its slices in the archive together. slices: their number. of: the number of "
    "slices in the volume; null if unknown. dice, mean, sd: of the network's prediction as it is. masked_dice, "
    "masked_mean, masked_sd: of the prediction with everything outside the head, where all contrasts are 0, set to "
    "background. removed: predicted voxels outside the head. Dice is 1 if truth and prediction are both empty, and 0 "
    "if one of them is. mean, sd (n - 1): over patients; a patient counts once, with the mean of all examinations. "
    "labels: single classes. regions: unions of classes. truth, predicted: voxels. empty_truth: examinations whose "
    "truth lacks the class or region. overlap: patients that the U-Net knew from its training, by their own slices or "
    "through a GAN."
)


@dataclass(frozen=True)
class Target:
    """A label class or a region, which a Dice is computed for."""

    kind: str  # "label" or "region"; a name may be both, such as ET in BraTS
    name: str
    classes: tuple[int, ...]  # class indices

    @property
    def title(self) -> str:
        return f"{self.name} ({self.kind})"


@dataclass(frozen=True)
class TargetDice:
    """Dice of one target in one examination."""

    dice: float  # of the network's prediction as it is
    truth: int  # voxels in the truth
    predicted: int  # voxels in the prediction as it is
    masked_dice: float  # of the prediction with background outside the head
    removed: int  # predicted voxels outside the head


@dataclass(frozen=True)
class ExaminationDice:
    """Dice of one examination: all slices of one volume of one patient."""

    patient: str
    volume: str | None  # None: slices of no known volume
    slices: int  # number of its slices in the archive
    of: int | None  # number of slices in the volume; None: unknown
    regions: dict[str, TargetDice]  # by name of the region
    labels: dict[str, TargetDice]  # by name of the class

    def result(self, target: Target) -> TargetDice:
        """The Dice of a region or a label class."""
        return (self.regions if target.kind == "region" else self.labels)[target.name]

    @property
    def removed(self) -> int:
        """Voxels of any class that the network predicted outside the head."""
        return sum(label.removed for label in self.labels.values())


@dataclass(frozen=True)
class Summary:
    """Dice of one target over the patients."""

    mean: float
    sd: float | None  # None for one patient
    empty_truth: int  # examinations whose truth lacks the target
    masked_mean: float
    masked_sd: float | None
    removed: int  # predicted voxels outside the heads

    def __str__(self) -> str:
        return _format(self.mean, self.sd)

    @property
    def masked(self) -> str:
        return _format(self.masked_mean, self.masked_sd)


def _format(mean: float, sd: float | None) -> str:
    return f"{mean:.3f} ± {sd:.3f}" if sd is not None else f"{mean:.3f}"


@dataclass(frozen=True)
class ModelFacts:
    """Which U-Net was evaluated."""

    file: str  # its name, without the folder
    sha256: str
    info: UNetInfo  # what is stored beside its weights


@dataclass(frozen=True)
class Evaluation:
    """One U-Net on one archive: the content of results.json."""

    format: str
    version: int
    measure: str
    notes: tuple[str, ...]  # what a reader of the numbers must know, in sentences
    data: ArchiveFacts
    overlap: tuple[str, ...]  # patients of the archive that the U-Net knew, from their slices or through a GAN
    regions: dict[str, Summary]  # by name
    labels: dict[str, Summary]  # by name of the class
    examinations: tuple[ExaminationDice, ...]
    model: ModelFacts  # last, because it is long: it lists all patients, and readers look for the Dice

    def summary(self, target: Target) -> Summary:
        """The summary of a region or a label class."""
        return (self.regions if target.kind == "region" else self.labels)[target.name]

    @property
    def patients(self) -> list[str]:
        return list(dict.fromkeys(e.patient for e in self.examinations))

    @property
    def removed(self) -> int:
        """Voxels of any class that the network predicted outside the heads."""
        return sum(e.removed for e in self.examinations)


def targets_of(schema: Schema) -> tuple[Target, ...]:
    """The regions of a schema, then its classes."""
    regions = (Target("region", r.name, tuple(schema.region_indices(r))) for r in schema.regions)
    labels = (Target("label", name, (i,)) for i, name in enumerate(schema.class_names, start=1))
    return (*regions, *labels)


def score_examination(
    patient: str,
    prediction: np.ndarray,  # class indices [S, H, W] of all slices
    truth: np.ndarray,  # class indices [S, H, W]
    inside: np.ndarray,  # bool [S, H, W], the head
    schema: Schema,
    volume: str | None = None,
    of: int | None = None,  # number of slices in the volume
) -> ExaminationDice:
    """Compare an examination's prediction with its truth."""
    targets = targets_of(schema)
    # [T, S, H, W] each
    predicted_masks, true_masks = _masks(prediction, targets), _masks(truth, targets)
    dice, masked = _dice(predicted_masks, true_masks), _dice(predicted_masks & inside, true_masks)
    by_kind: dict[str, dict[str, TargetDice]] = {"region": {}, "label": {}}
    for t, target in enumerate(targets):
        by_kind[target.kind][target.name] = TargetDice(
            dice=dice[t],
            truth=int(true_masks[t].sum()),
            predicted=int(predicted_masks[t].sum()),
            masked_dice=masked[t],
            removed=int((predicted_masks[t] & ~inside).sum()),
        )
    return ExaminationDice(patient, volume, len(truth), of, by_kind["region"], by_kind["label"])


def summarize(examinations: Sequence[ExaminationDice], target: Target) -> Summary:
    """Mean and SD of one target over the patients. A patient with several examinations counts once."""
    results = [examination.result(target) for examination in examinations]
    patients = [examination.patient for examination in examinations]
    mean, sd = _over_patients(patients, [r.dice for r in results])
    masked_mean, masked_sd = _over_patients(patients, [r.masked_dice for r in results])
    empty = sum(r.truth == 0 for r in results)
    return Summary(mean, sd, empty, masked_mean, masked_sd, sum(r.removed for r in results))


def _over_patients(patients: Sequence[str], dice: Sequence[float]) -> tuple[float, float | None]:
    """Mean and SD of the patients' means. Both arguments have one entry per examination."""
    of_patient: dict[str, list[float]] = {}
    for patient, value in zip(patients, dice, strict=True):
        of_patient.setdefault(patient, []).append(value)
    means = [statistics.fmean(values) for values in of_patient.values()]
    return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else None


def _masks(indices: np.ndarray, targets: Sequence[Target]) -> np.ndarray:
    """Class indices [S, H, W] -> bool [T, S, H, W], one mask per target."""
    return np.stack([np.isin(indices, target.classes) for target in targets])


def _dice(prediction: np.ndarray, truth: np.ndarray) -> list[float]:
    """Dice 2 |P ∩ T| / (|P| + |T|) of each target, from bool [T, S, H, W]: 1 if both are empty, 0 if one is."""
    import torch
    from monai.metrics import compute_dice  # takes seconds to import

    # MONAI computes the Dice of each channel: [1, T, S, H, W] is one volume with a channel for each target.
    one, other = torch.from_numpy(prediction)[None], torch.from_numpy(truth)[None]
    return compute_dice(one, other, ignore_empty=False)[0].double().tolist()

"""Dice of an examination's stacked slices, per label class and per region, and its summary over patients."""

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
    "Dice of each examination: all its slices in the archive (slices) taken together, of as many as its volume has "
    "(of; null: unknown). dice, mean, sd: of the network's own answer everywhere. masked_dice, masked_mean, masked_sd: "
    "of the answer with background where every contrast is 0, outside the head; removed: predicted voxels that this "
    "takes away. What is empty in truth and prediction counts 1, what is empty in one of them 0. mean, sd (n - 1): "
    "over the patients, each of whom counts with the mean of his examinations. labels: each class by itself; regions: "
    "unions of classes. truth, predicted: voxels. empty_truth: examinations whose truth lacks the class or region. "
    "overlap: patients whom the U-Net knew from its training, by their own slices or through a GAN."
)


@dataclass(frozen=True)
class Target:
    """What a Dice is taken of: a label class or a region."""

    kind: str  # "label" or "region"; names alone don't tell, BraTS has an ET of either kind
    name: str
    classes: tuple[int, ...]  # class indices

    @property
    def title(self) -> str:
        return f"{self.name} ({self.kind})"


@dataclass(frozen=True)
class TargetDice:
    """Dice of one target in one examination."""

    dice: float  # of the network's own answer
    truth: int  # voxels in the truth
    predicted: int  # voxels in the network's own answer
    masked_dice: float  # of the answer with background outside the head
    removed: int  # predicted voxels outside the head


@dataclass(frozen=True)
class ExaminationDice:
    """Dice of one examination: all slices of one volume of one patient."""

    patient: str
    volume: str | None  # None: slices of no known volume
    slices: int  # that the archive has
    of: int | None  # slices that the volume has; None: unknown
    regions: dict[str, TargetDice]  # by name
    labels: dict[str, TargetDice]  # by name of the class

    def result(self, target: Target) -> TargetDice:
        """The entry of a region or a label."""
        return (self.regions if target.kind == "region" else self.labels)[target.name]

    @property
    def removed(self) -> int:
        """Voxels of any class that the network predicted outside the head."""
        return sum(label.removed for label in self.labels.values())


@dataclass(frozen=True)
class Summary:
    """Dice of one target over the patients. An sd is None for one patient."""

    mean: float
    sd: float | None
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
    info: UNetInfo  # what it says of itself


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
    model: ModelFacts  # last: it names every slice's patient, and a reader of the file looks for Dice

    def summary(self, target: Target) -> Summary:
        """The entry of a region or a label."""
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
    of: int | None = None,  # slices that the volume has
) -> ExaminationDice:
    """Compare an examination's prediction with its truth."""
    targets = targets_of(schema)
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
    """Mean and SD of one target over the patients: each counts once, whatever the number of examinations."""
    results = [examination.result(target) for examination in examinations]
    patients = [examination.patient for examination in examinations]
    mean, sd = _over_patients(patients, [r.dice for r in results])
    masked_mean, masked_sd = _over_patients(patients, [r.masked_dice for r in results])
    empty = sum(r.truth == 0 for r in results)
    return Summary(mean, sd, empty, masked_mean, masked_sd, sum(r.removed for r in results))


def _over_patients(patients: Sequence[str], dice: Sequence[float]) -> tuple[float, float | None]:
    """Mean and SD of the patients' means. Both arguments: one entry for every examination."""
    of_patient: dict[str, list[float]] = {}
    for patient, value in zip(patients, dice, strict=True):
        of_patient.setdefault(patient, []).append(value)
    means = [statistics.fmean(values) for values in of_patient.values()]
    return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else None


def _masks(indices: np.ndarray, targets: Sequence[Target]) -> np.ndarray:
    """Class indices [S, H, W] -> bool [T, S, H, W], one mask per target."""
    return np.stack([np.isin(indices, target.classes) for target in targets])


def _dice(prediction: np.ndarray, truth: np.ndarray) -> list[float]:
    """2 |P ∩ T| / (|P| + |T|) per target, of bool [T, S, H, W]; empty in both: 1, in one: 0."""
    import torch
    from monai.metrics import compute_dice  # takes seconds to import

    # [1, T, S, H, W]: a batch of one picture with T channels, whose pixels are all voxels of the examination
    one, other = torch.from_numpy(prediction)[None], torch.from_numpy(truth)[None]
    return compute_dice(one, other, ignore_empty=False)[0].double().tolist()

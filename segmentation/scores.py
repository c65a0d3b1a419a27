"""Dice and HD95 of each examination, per label class and per region, and their summaries."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from segmentation.archive_facts import ArchiveFacts
from segmentation.hausdorff import Stack, hd95
from segmentation.unet import UNetInfo
from slices.schema import Schema

FORMAT, VERSION = "segmentation-dice", 4
MEASURE = (
    "Dice of each examination, over all its slices in the archive together. slices: their number. of: the number of "
    "slices in the volume; null if unknown. missing: slices that the archive lacks between the first and the last; "
    "null if the places of the slices are unknown. dice, mean, sd: of the network's prediction as it is. masked_dice, "
    "masked_mean, masked_sd: of the prediction with everything outside the head, where all contrasts are 0, set to "
    "background. removed: predicted voxels outside the head. Dice is 1 if truth and prediction are both empty, and 0 "
    "if one of them is. mean, sd (n - 1): over patients; a patient counts once, with the mean of all examinations. "
    "present_mean, present_sd: the same over the examinations whose truth has the class or region. labels: single "
    "classes. regions: unions of classes. truth, predicted: voxels. present, empty_truth: examinations whose truth has "
    "or lacks the class or region. misses: those of the former where nothing was predicted. false_alarms: those of the "
    "latter where something was. hd95: 95 % Hausdorff distance in mm of truth and prediction as it is, in the stacked "
    "slices, by MONAI's definition: the larger one of the 95th percentiles of both directions, from the surface voxels "
    "of one mask to the nearest surface voxel of the other. The BraTS challenges since 2023 take one percentile of "
    "both directions together, and penalize otherwise, so these numbers don't compare with theirs. hd95 is 0 if truth "
    "and prediction are both empty, and diagonal, that of the stacked volume in mm, if one of them is; null if slices "
    "are missing, or their places are unknown. Summaries of hd95 are median and quartiles over the examinations whose "
    "truth has the class or region, misses included. overlap: patients that the U-Net knew from its training, by their "
    "own slices or through a GAN."
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
    """How well one target was found in one examination."""

    dice: float  # of the network's prediction as it is
    truth: int  # voxels in the truth
    predicted: int  # voxels in the prediction as it is
    masked_dice: float  # of the prediction with background outside the head
    removed: int  # predicted voxels outside the head
    hd95: float | None  # mm, of the prediction as it is; None: slices are missing, or their places are unknown

    @property
    def is_present(self) -> bool:
        """Whether the truth has the target."""
        return self.truth > 0

    @property
    def is_missed(self) -> bool:
        """Whether the truth has the target, and nothing was predicted."""
        return self.truth > 0 and self.predicted == 0

    @property
    def is_false_alarm(self) -> bool:
        """Whether the truth lacks the target, and something was predicted."""
        return self.truth == 0 and self.predicted > 0


@dataclass(frozen=True)
class ExaminationDice:
    """How well one examination was segmented: all slices of one volume of one patient."""

    patient: str
    volume: str | None  # None: slices of no known volume
    slices: int  # number of its slices in the archive
    of: int | None  # number of slices in the volume; None: unknown
    missing: int | None  # slices that the archive lacks between the first and the last; None: their places are unknown
    diagonal: float | None  # of the stacked slices, in mm; None where there is no HD95
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
class Quartiles:
    """Quartiles of a distance, in mm."""

    lower: float
    median: float
    upper: float

    def __str__(self) -> str:
        return f"{self.median:.1f} [{self.lower:.1f}, {self.upper:.1f}]"


@dataclass(frozen=True)
class Summary:
    """One target over the patients. Counts and quartiles are over examinations."""

    mean: float
    sd: float | None  # None for one patient
    present: int  # examinations whose truth has the target
    empty_truth: int  # examinations whose truth lacks it
    present_mean: float | None  # Dice where the truth has the target; None if that is nowhere
    present_sd: float | None  # None for one patient
    misses: int  # of `present`: nothing was predicted
    false_alarms: int  # of `empty_truth`: something was predicted
    hd95: Quartiles | None  # where the truth has the target, misses included; None: unknown for all
    masked_mean: float
    masked_sd: float | None
    removed: int  # predicted voxels outside the heads

    def __str__(self) -> str:
        return _format(self.mean, self.sd)

    @property
    def where_present(self) -> str:
        return "-" if self.present_mean is None else _format(self.present_mean, self.present_sd)

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


def headline_of(schema: Schema) -> tuple[Target, ...]:
    """The regions of a schema, or its classes if it has no regions. Claims are about these."""
    targets = targets_of(schema)
    return tuple(target for target in targets if target.kind == targets[0].kind)


def score_examination(
    patient: str,
    prediction: np.ndarray,  # class indices [S, H, W] of all slices
    truth: np.ndarray,  # class indices [S, H, W]
    inside: np.ndarray,  # bool [S, H, W], the head
    schema: Schema,
    volume: str | None = None,
    of: int | None = None,  # number of slices in the volume
    stack: Stack | None = None,  # how the slices are stacked; None: unknown, so there is no HD95
) -> ExaminationDice:
    """Compare an examination's prediction with its truth."""
    targets = targets_of(schema)
    # [T, S, H, W] each
    predicted_masks, true_masks = _masks(prediction, targets), _masks(truth, targets)
    dice, masked = _dice(predicted_masks, true_masks), _dice(predicted_masks & inside, true_masks)
    distances = _distances(predicted_masks, true_masks, targets, stack)
    by_kind: dict[str, dict[str, TargetDice]] = {"region": {}, "label": {}}
    for t, target in enumerate(targets):
        by_kind[target.kind][target.name] = TargetDice(
            dice=dice[t],
            truth=int(true_masks[t].sum()),
            predicted=int(predicted_masks[t].sum()),
            masked_dice=masked[t],
            removed=int((predicted_masks[t] & ~inside).sum()),
            hd95=distances[t],
        )
    missing = None if stack is None else stack.missing
    diagonal = stack.diagonal(*truth.shape[1:]) if stack is not None and stack.is_whole else None
    return ExaminationDice(patient, volume, len(truth), of, missing, diagonal, by_kind["region"], by_kind["label"])


def summarize(examinations: Sequence[ExaminationDice], target: Target) -> Summary:
    """One target over the patients. A patient with several examinations counts once in the means of the Dice."""
    results = [(e.patient, e.result(target)) for e in examinations]
    present = [(patient, r) for patient, r in results if r.is_present]
    mean, sd = _over_patients((patient, r.dice) for patient, r in results)
    present_mean, present_sd = _over_patients((patient, r.dice) for patient, r in present) if present else (None, None)
    masked_mean, masked_sd = _over_patients((patient, r.masked_dice) for patient, r in results)
    return Summary(
        mean=mean,
        sd=sd,
        present=len(present),
        empty_truth=len(results) - len(present),
        present_mean=present_mean,
        present_sd=present_sd,
        misses=sum(r.is_missed for _, r in results),
        false_alarms=sum(r.is_false_alarm for _, r in results),
        hd95=_quartiles([r.hd95 for _, r in present if r.hd95 is not None]),
        masked_mean=masked_mean,
        masked_sd=masked_sd,
        removed=sum(r.removed for _, r in results),
    )


def pooled_dice(evaluation: Evaluation, target: Target) -> float:
    """Dice of one target over all voxels of all examinations together: that of one huge volume.

    For archives whose examinations are single slices, such as fakes: the mean over them would be that of many slices
    without the target, which count 1 or 0. It is 1 if truth and prediction are empty everywhere.
    """
    results = [examination.result(target) for examination in evaluation.examinations]
    # The Dice of one is 2 |P ∩ T| / (|P| + |T|), so multiplied by its denominator it is the overlap, twice.
    sizes = [r.truth + r.predicted for r in results]
    overlaps = math.fsum(r.dice * size for r, size in zip(results, sizes, strict=True))
    return overlaps / sum(sizes) if any(sizes) else 1.0


def _over_patients(results: Iterable[tuple[str, float]]) -> tuple[float, float | None]:
    """Mean and SD of the patients' means, from one (patient, Dice) per examination."""
    of_patient: dict[str, list[float]] = {}
    for patient, value in results:
        of_patient.setdefault(patient, []).append(value)
    means = [statistics.fmean(values) for values in of_patient.values()]
    return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else None


def _quartiles(distances: Sequence[float]) -> Quartiles | None:
    """Quartiles of distances; None if there are none."""
    return Quartiles(*np.percentile(distances, (25, 50, 75)).tolist()) if distances else None


def _masks(indices: np.ndarray, targets: Sequence[Target]) -> np.ndarray:
    """Class indices [S, H, W] -> bool [T, S, H, W], one mask per target."""
    return np.stack([np.isin(indices, target.classes) for target in targets])


def _distances(
    prediction: np.ndarray, truth: np.ndarray, targets: Sequence[Target], stack: Stack | None
) -> list[float | None]:
    """HD95 of each target in mm, from bool [T, S, H, W]; None for all where it can't be measured."""
    if stack is None or not stack.is_whole:
        return [None] * len(targets)
    order = list(stack.order)
    # A region may be a class too, such as ET in BraTS, and is measured once.
    masks = {target.classes: t for t, target in enumerate(targets)}
    found = {classes: hd95(prediction[t][order], truth[t][order], stack.spacing) for classes, t in masks.items()}
    return [found[target.classes] for target in targets]


def _dice(prediction: np.ndarray, truth: np.ndarray) -> list[float]:
    """Dice 2 |P ∩ T| / (|P| + |T|) of each target, from bool [T, S, H, W]: 1 if both are empty, 0 if one is."""
    import torch
    from monai.metrics import compute_dice  # takes seconds to import

    # MONAI computes the Dice of each channel: [1, T, S, H, W] is one volume with a channel for each target.
    one, other = torch.from_numpy(prediction)[None], torch.from_numpy(truth)[None]
    return compute_dice(one, other, ignore_empty=False)[0].double().tolist()

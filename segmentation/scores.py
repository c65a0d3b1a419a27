"""Dice of a patient's stacked volume, per label class and per region, and its summary over patients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slices.schema import Schema
from segmentation.unet import UNetInfo

MEASURE = (
    "Dice of each patient's stacked volume: all slices of the patient in the archive taken together. "
    "A class or region that is empty in truth and prediction counts 1, one that is empty in one of them 0. "
    "labels: each class by itself; regions: unions of classes."
)


@dataclass(frozen=True)
class Target:
    """What a Dice is of: a label class or a region, by name, with its class indices."""

    kind: str  # "label" or "region": BraTS has an ET of either kind
    name: str
    classes: tuple[int, ...]

    @property
    def title(self) -> str:
        return f"{self.kind} {self.name}"


def targets_of(schema: Schema) -> tuple[Target, ...]:
    """The regions of a schema, then its classes."""
    regions = (Target("region", r.name, tuple(schema.region_indices(r))) for r in schema.regions)
    labels = (Target("label", name, (i,)) for i, name in enumerate(schema.class_names, start=1))
    return (*regions, *labels)


@dataclass(frozen=True)
class PatientDice:
    """One patient: number of slices, Dice and voxels of the truth by target."""

    patient: str
    slices: int
    regions: dict[str, float]
    labels: dict[str, float]
    truth_voxels: dict[str, dict[str, int]]  # "regions" and "labels" -> name -> voxels

    def of(self, target: Target) -> float:
        return {"region": self.regions, "label": self.labels}[target.kind][target.name]

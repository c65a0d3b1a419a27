"""From the volumes of a case to slices."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dnnlib.errors import UserError
from slices.archive.format import Volume
from slices.convert.cases import Case
from slices.convert.head import ALL, find_head, head_above, parse_head
from slices.convert.options import CHOICES, ConvertOptions
from slices.convert.volumes import CaseVolumes, judge_nan, read_case
from slices.geometry import PixelGrid, pixel_size
from slices.intensity import GrayLevels, intensity_window
from slices.schema import BRIGHTEST, DARKEST, OUTSIDE, Schema

OUT_OF_VIEW = "lesion voxels outside the field of view"
NOT_IN_HEAD = "lesion voxels outside the head"
_RIM = 0.01  # share of a case's lesion voxels that may lie outside the head unsaid


@dataclass(frozen=True)
class CaseSlices:
    """The chosen slices of a case, and what became of the others.

    contrasts: uint8 [N, C, R, R]; classes: class indices, uint8 [N, R, R]; indices: their places along S;
    skipped: reason -> number of slices; counted: remark -> voxels; lost: remark -> share of the lesion's volume.
    """

    case: Case
    volume: Volume
    indices: tuple[int, ...]
    contrasts: np.ndarray
    classes: np.ndarray
    skipped: dict[str, int]
    remarks: tuple[str, ...]
    counted: dict[str, int]
    lost: dict[str, float]


def cut_case(
    case: Case, choice: str, schema: Schema, options: ConvertOptions, lesion_free: float | None = None
) -> CaseSlices:
    """Read a case and cut the slices of one of CHOICES out of it, and lesion-free ones that are to be such a share."""
    assert choice in CHOICES, choice
    volumes = read_case(case, schema)
    sides, spacing = volumes.labels.shape[1:], volumes.spacing[1:]
    try:
        pixel = pixel_size(sides, spacing, options.resolution, options.fov)
        head = _head(volumes, options)
    except UserError as error:
        raise UserError(f"{case.contrasts[0].path.parent}: {error}") from None
    grid = PixelGrid.of(sides, spacing, options.resolution, pixel)
    windows = [intensity_window(contrast[head]) for contrast in volumes.contrasts]
    scales = [GrayLevels(window, c.dtype) for window, c in zip(windows, volumes.contrasts, strict=True)]

    blank = [name for name, (low, high) in zip(schema.contrasts, windows, strict=True) if low == high]
    remarks = [
        *volumes.remarks,
        *judge_nan(volumes, head),
        *(f"{name} has one value in nearly all of the head" for name in blank),
        *(["no background found, every voxel is head"] if options.head is None and head.all() else []),
    ]
    lost = _lost_voxels(volumes.labels, head, grid)

    pictures = [grid.majority(labels, max(1, schema.num_maps)) for labels in volumes.labels]
    reasons = [_no_tumour(picture, options.min_tumor_pixels) if choice == "tumor" else None for picture in pictures]
    if lesion_free:
        candidates = [k for k in range(len(head)) if not volumes.labels[k].any() and grid.covers(head[k]).any()]
        wanted = round(reasons.count(None) * lesion_free / (1 - lesion_free))
        for k in _draw_slices(case, candidates, wanted):
            reasons[k] = None
        if len(candidates) < wanted:
            remarks.append("fewer slices without lesion than --lesion-free asks for")

    indices, contrasts, classes, skipped = [], [], [], Counter()
    for k, (labels, reason) in enumerate(zip(pictures, reasons, strict=True)):
        if reason:
            skipped[reason] += 1
            continue
        inside = grid.covers(head[k])
        if choice == "brain" and not inside.any():
            skipped["no brain"] += 1
            continue
        indices.append(k)
        classes.append(labels)
        contrasts.append(
            [
                _gray_levels(grid, contrast[k], head[k], inside, scale)
                for contrast, scale in zip(volumes.contrasts, scales, strict=True)
            ]
        )
    edge = options.resolution
    return CaseSlices(
        case=case,
        volume=Volume(
            patient=case.patient,
            shape=volumes.shape,
            affine=tuple(tuple(float(v) for v in row) for row in volumes.affine),
            pixel=pixel,
            windows=dict(zip(schema.contrasts, windows, strict=True)),
        ),
        indices=tuple(indices),
        contrasts=np.array(contrasts, np.uint8).reshape(-1, schema.num_contrasts, edge, edge),
        classes=np.array(classes, np.uint8).reshape(-1, edge, edge),
        skipped=dict(skipped),
        remarks=tuple(remarks),
        counted={**volumes.counted, **lost},
        lost={remark: round(n / int(np.count_nonzero(volumes.labels)), 4) for remark, n in lost.items()},
    )


def _head(volumes: CaseVolumes, options: ConvertOptions) -> np.ndarray:
    """Which voxels are head, bool [S, P, L]."""
    if volumes.head is not None:
        return volumes.head
    said = None if options.head is None else parse_head(options.head)
    if said is None:
        return find_head(volumes.contrasts)
    return np.ones(volumes.labels.shape, bool) if said == ALL else head_above(volumes.contrasts, said)


def _lost_voxels(labels: np.ndarray, head: np.ndarray, grid: PixelGrid) -> dict[str, int]:
    """Remark -> lesion voxels that the archive shows no picture of: cut off, or on black."""
    lesion = labels.astype(bool)
    cut_off = round(float((lesion.sum(axis=0) * (1 - grid.shown())).sum()))
    on_black = int(np.count_nonzero(lesion & ~head))
    few = _RIM * np.count_nonzero(lesion)
    found = {OUT_OF_VIEW: cut_off, NOT_IN_HEAD: on_black if on_black > few else 0}
    return {remark: n for remark, n in found.items() if n}


def _no_tumour(classes: np.ndarray, min_tumor_pixels: int) -> str | None:
    """Why a slice has no tumour, or None if it has one."""
    lesion = np.count_nonzero(classes)
    if not lesion:
        return "no tumour"
    return f"fewer than {min_tumor_pixels} tumour pixels" if lesion < min_tumor_pixels else None


def _draw_slices(case: Case, indices: Sequence[int], count: int) -> list[int]:
    """So many of a case's slices, or all; drawn by a hash, as patients are for a split."""
    return sorted(indices, key=lambda k: hashlib.sha256(f"{case.name}:{k}".encode()).digest())[:count]


def _gray_levels(
    grid: PixelGrid, picture: np.ndarray, head: np.ndarray, inside: np.ndarray, scale: GrayLevels
) -> np.ndarray:
    """Intensities [P, L] -> stored contrast, uint8 [R, R]; rounded once, after the mean over areas."""
    if grid.moves:
        return grid.moved(np.where(head, scale.rounded(picture), np.uint8(OUTSIDE)))
    levels = grid.mean(np.where(head, scale.levels(picture), OUTSIDE))
    return np.where(inside, np.clip(np.rint(levels), DARKEST, BRIGHTEST), OUTSIDE).astype(np.uint8)

"""Volumes of a case → slices of an archive."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dnnlib.errors import UserError
from slices.archive.format import Volume
from slices.convert.cases import Case
from slices.convert.options import CHOICES, ConvertOptions
from slices.convert.volumes import CaseVolumes, judge_nan, read_case
from slices.geometry import PixelGrid, pixel_size
from slices.intensity import GrayLevels, intensity_window
from slices.schema import BRIGHTEST, DARKEST, OUTSIDE, Schema

OUT_OF_VIEW = "lesion voxels outside the field of view"
NOT_IN_HEAD = "lesion voxels outside the head"
_RIM = 0.01  # share of a case's lesion voxels that may lie outside the head without a remark


@dataclass(frozen=True)
class CaseSlices:
    """The slices chosen from a case, and why others were not."""

    volume: Volume
    indices: tuple[int, ...]  # positions of the N chosen slices along S, from the feet
    contrasts: np.ndarray  # uint8 [N, C, R, R]
    classes: np.ndarray  # class indices, uint8 [N, R, R]
    skipped: dict[str, int]  # reason -> slices that were not chosen
    remarks: tuple[str, ...]
    counted: dict[str, int]  # remark -> voxels
    lost: dict[str, float]  # remark -> share of the lesion's voxels
    head: np.ndarray  # the head in the volume, bool [S, P, L]


@dataclass(frozen=True)
class _View:
    """What all slices of a case have in common: the head, pixels and windows."""

    head: np.ndarray  # bool [S, P, L]
    grid: PixelGrid
    pixel: float  # edge of a pixel, mm
    windows: tuple[tuple[float, float], ...]  # intensity window of each contrast

    def covers_head(self, k: int) -> np.ndarray:
        """Pixels of slice k that are head, bool [R, R]."""
        return self.grid.covers(self.head[k])


def cut_case(
    case: Case, choice: str, schema: Schema, options: ConvertOptions, lesion_free: float | None = None
) -> CaseSlices:
    """Read a case and cut slices out of it.

    choice: which slices, one of CHOICES. lesion_free: slices with brain and without lesion are added until they have
    this share. Raises UserError naming the file or folder if the case can't be cut.
    """
    assert choice in CHOICES, choice
    volumes = read_case(case, schema)
    view = _view(case, volumes, options)
    remarks = _remarks(volumes, view, schema, options)
    label_maps = [view.grid.majority(labels, max(1, schema.num_maps)) for labels in volumes.labels]  # S of [R, R]
    # For each slice, why it is not chosen; None if it is.
    reasons = [_reason_against(choice, k, labels, view, options) for k, labels in enumerate(label_maps)]
    if lesion_free:
        # n slices with a lesion and w without: w / (n + w) is the share, so w = n · share / (1 − share).
        wanted = round(reasons.count(None) * lesion_free / (1 - lesion_free))
        drawn = _draw_lesion_free(case, volumes, view, wanted)
        reasons = [None if k in drawn else reason for k, reason in enumerate(reasons)]
        if len(drawn) < wanted:
            remarks.append("fewer slices without lesion than --lesion-free asks for")
    chosen = [k for k, reason in enumerate(reasons) if reason is None]
    lost = _lost_voxels(volumes.labels, view)
    edge = options.resolution
    return CaseSlices(
        volume=_describe_volume(case, volumes, view, schema),
        indices=tuple(chosen),
        # Reshaped, because no slice at all would give an array of shape [0].
        contrasts=_gray_levels(volumes, view, chosen).reshape(-1, schema.num_contrasts, edge, edge),
        classes=np.array([label_maps[k] for k in chosen], np.uint8).reshape(-1, edge, edge),
        skipped=dict(Counter(reason for reason in reasons if reason is not None)),
        remarks=tuple(remarks),
        counted={**volumes.counted, **lost},
        lost={remark: round(n / int(np.count_nonzero(volumes.labels)), 4) for remark, n in lost.items()},
        head=view.head,
    )


def _view(case: Case, volumes: CaseVolumes, options: ConvertOptions) -> _View:
    """Find the head, and lay pixels over voxels. Raises UserError naming the case's folder if that fails."""
    sides, spacing = volumes.labels.shape[1:], volumes.spacing[1:]
    try:
        pixel = pixel_size(sides, spacing, options.resolution, options.fov)
        head = options.head_rule.find(volumes.contrasts, volumes.head)
    except UserError as error:
        raise UserError(f"{case.contrasts[0].path.parent}: {error}") from None
    # contrast[head] is the intensities of the head's voxels, as one long row.
    return _View(
        head=head,
        grid=PixelGrid.of(sides, spacing, options.resolution, pixel),
        pixel=pixel,
        windows=tuple(intensity_window(contrast[head]) for contrast in volumes.contrasts),
    )


def _remarks(volumes: CaseVolumes, view: _View, schema: Schema, options: ConvertOptions) -> list[str]:
    """What the user should know about the case. Raises UserError for NaN inside the head."""
    blank = [name for name, (low, high) in zip(schema.contrasts, view.windows, strict=True) if low == high]
    all_head = options.head_rule.is_auto and view.head.all()
    return [
        *volumes.remarks,
        *judge_nan(volumes, view.head),
        *(f"{name} has one value in nearly all of the head" for name in blank),
        *(["no background found, every voxel is head"] if all_head else []),
    ]


def _describe_volume(case: Case, volumes: CaseVolumes, view: _View, schema: Schema) -> Volume:
    """The record of the source volume, for the archive."""
    return Volume(
        patient=case.patient,
        shape=volumes.shape,
        affine=tuple(tuple(float(v) for v in row) for row in volumes.affine),
        pixel=view.pixel,
        windows=dict(zip(schema.contrasts, view.windows, strict=True)),
    )


def _lost_voxels(labels: np.ndarray, view: _View) -> dict[str, int]:
    """Remark -> number of lesion voxels that are not visible in the archive: cut off, or on background."""
    lesion = labels.astype(bool)
    # Lesion voxels along each line through all slices, times the share of that line outside the picture: [P, L].
    cut_off = round(float((lesion.sum(axis=0) * (1 - view.grid.shown())).sum()))
    on_black = int(np.count_nonzero(lesion & ~view.head))
    few = _RIM * np.count_nonzero(lesion)
    found = {OUT_OF_VIEW: cut_off, NOT_IN_HEAD: on_black if on_black > few else 0}
    return {remark: n for remark, n in found.items() if n}


# --- which slices -----------------------------------------------------------------------------------------------------


def _reason_against(choice: str, k: int, labels: np.ndarray, view: _View, options: ConvertOptions) -> str | None:
    """Why slice k is not chosen; None if it is. labels: its class indices [R, R]."""
    if choice == "tumor":
        return _no_tumor(labels, options.min_tumor_pixels)
    if choice == "brain" and not view.covers_head(k).any():
        return "no brain"
    return None


def _no_tumor(labels: np.ndarray, min_tumor_pixels: int) -> str | None:
    """Why a slice counts as one without tumor; None if it has one. These words are stored in archives."""
    lesion = np.count_nonzero(labels)
    if not lesion:
        return "no tumor"
    return f"fewer than {min_tumor_pixels} tumor pixels" if lesion < min_tumor_pixels else None


def _draw_lesion_free(case: Case, volumes: CaseVolumes, view: _View, wanted: int) -> set[int]:
    """Draw up to `wanted` slices with brain and without any lesion voxel, by a hash as in `shuffle_names`."""
    candidates = [k for k, labels in enumerate(volumes.labels) if not labels.any() and view.covers_head(k).any()]
    return set(sorted(candidates, key=lambda k: hashlib.sha256(f"{case.name}:{k}".encode()).digest())[:wanted])


# --- gray levels ------------------------------------------------------------------------------------------------------


def _gray_levels(volumes: CaseVolumes, view: _View, chosen: Sequence[int]) -> np.ndarray:
    """The contrasts of the chosen slices as they are stored, uint8 [N, C, R, R]."""
    scales = [GrayLevels(window, c.dtype) for window, c in zip(view.windows, volumes.contrasts, strict=True)]
    stored = []
    for k in chosen:
        inside = view.covers_head(k)  # [R, R]
        stored += [  # [R, R] each, slice after slice
            _stored_contrast(view.grid, contrast[k], view.head[k], inside, scale)
            for contrast, scale in zip(volumes.contrasts, scales, strict=True)
        ]
    return np.array(stored, np.uint8)


def _stored_contrast(
    grid: PixelGrid, picture: np.ndarray, head: np.ndarray, inside: np.ndarray, scale: GrayLevels
) -> np.ndarray:
    """Intensities [P, L] -> stored contrast, uint8 [R, R]. Rounded only once, after averaging over pixels."""
    if grid.moves:
        return grid.moved(np.where(head, scale.rounded(picture), np.uint8(OUTSIDE)))
    # Clipped, so that no pixel of the head gets the value of the background.
    levels = grid.mean(np.where(head, scale.levels(picture), OUTSIDE))
    return np.where(inside, np.clip(np.rint(levels), DARKEST, BRIGHTEST), OUTSIDE).astype(np.uint8)

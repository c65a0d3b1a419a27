"""Segmentation of NIfTI volumes: the cases of a folder in, one mask for each out.

Cases are found and cut into slices by the code that makes archives, so that a U-Net sees what it learned from. Masks of
a source are never read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from dnnlib import files
from dnnlib.errors import UserError
from dnnlib.publish import Staged
from dnnlib.text import count, format_table
from segmentation.archive_facts import pixels_of
from segmentation.config import PredictOptions
from segmentation.evaluate import model_file
from segmentation.predict import predict_slices
from segmentation.unet import TrainedUNet, UNetInfo, load_unet
from slices.archive.describe import first_names
from slices.archive.history import Cutting
from slices.convert.cases import Case
from slices.convert.cut import CaseSlices, cut_case
from slices.convert.head_mask import AUTO
from slices.convert.options import ConvertOptions
from slices.convert.outcome import UNREADABLE
from slices.convert.recognition import Recognized, find_cases
from slices.convert.releases import OWN
from slices.convert.source import SourceOptions
from slices.geometry import VoxelGrid
from slices.leaks import describe_shared, shared_patients, warn_of_alike
from slices.nifti import nifti_bytes
from slices.pixels import PixelSize
from slices.schema import LesionClass, Schema
from torch_utils.distributed import default_device

_RESAMPLED = "voxels take the nearest of larger pixels: Dice on voxels is not that of evaluate"
_UNSEEN = "head outside the picture, background in the mask"
_BEYOND = "lesion found beyond the volume, which evaluate counts and the mask can't hold"
_NOUNS = {_UNSEEN: "voxel", _BEYOND: "pixel"}
_MOST_ROWS = 20  # cases in the table
T = TypeVar("T", float | None, str | None)


@dataclass(frozen=True)
class Mask:
    """What was found in one case."""

    case: str
    voxels: dict[str, int]  # lesion class -> voxels of the mask
    remarks: tuple[str, ...]
    counted: dict[str, int]  # remark of _NOUNS -> voxels or pixels


@dataclass(frozen=True)
class Predicted:
    """The masks of a folder, and what a user should know about them."""

    found: str  # what the source is, in words
    schema: Schema  # with the label values that were written
    masks: tuple[Mask, ...]
    errors: dict[str, str]  # case that could not be read -> why
    warnings: tuple[str, ...]  # about all masks

    def describe(self, dest: Path) -> str:
        """A table of the first masks, notes, and the folder."""
        values = ", ".join(f"{c.value} {c.name}" for c in self.schema.classes)
        rows = [(mask.case, *mask.voxels.values()) for mask in self.masks[:_MOST_ROWS]]
        if more := len(self.masks) - len(rows):
            rows.append((f"and {more} more", *("" for _ in self.schema.classes)))
        written = f"written: {dest}, {count(len(self.masks), 'mask')}; label values: {values}"
        tables = [format_table(("voxels of", *self.schema.class_names), rows)]
        if notes := [*self._notes()]:
            tables.append(format_table(("notes", "how many", "which"), notes))
        return "\n\n".join([self.found, *tables, *self.warnings, written])

    def _notes(self) -> Iterator[tuple[str, str, str]]:
        """Rows (note, how many, which)."""
        cases: dict[str, list[str]] = {}  # remark -> cases
        for mask in self.masks:
            for remark in (*mask.remarks, *mask.counted):
                cases.setdefault(remark, []).append(mask.case)
        if self.errors:
            cases[f"left out: {UNREADABLE}"] = list(self.errors)
        for remark, names in cases.items():
            number = sum(mask.counted.get(remark, 0) for mask in self.masks)
            more = f", {count(number, _NOUNS[remark])}" if number else ""
            yield remark, count(len(names), "case") + more, first_names(names)


class _Job(NamedTuple):
    """All that is decided before the first volume is read."""

    unet: TrainedUNet
    options: ConvertOptions  # how slices are cut
    cases: list[Case]  # contrasts in the order of the U-Net, no masks
    schema: Schema  # of the masks
    batch: int


def predict_folder(data: SourceOptions, asked: PredictOptions) -> Predicted:
    """Segment every case of a folder, and write its mask as asked.dest/<case>.nii.gz. The masks appear together.

    Raises UserError if the U-Net and the source don't fit each other, for existing masks without `force`, and for a
    case that can't be read, unless it is to be skipped.
    """
    model = model_file(asked.model)
    unet = load_unet(model, default_device())
    options, warnings = _how_to_cut(unet.info, model, asked)
    found = find_cases(data.source, data.wanted_release, options.head_rule.masks, data.table)
    schema, doubts = _with_values_of(found, unet.info.schema)
    job = _Job(unet, options, _for_network(found, model, unet.info.schema), schema, asked.batch)
    _refuse_what_is_there(job, found, asked)
    masks, errors = _write(job, asked)
    known = _known_patients(unet.info, job.cases)
    return Predicted(found.words, schema, tuple(masks), errors, (*warnings, *doubts, *known))


# --- what is decided beforehand ---------------------------------------------------------------------------------------


def _how_to_cut(info: UNetInfo, model: Path, asked: PredictOptions) -> tuple[ConvertOptions, list[str]]:
    """Options to cut slices as the U-Net's archives were cut, and a warning if these don't say how."""
    known = [archive.cutting for archive in info.archives if archive.cutting is not None]
    warnings = []
    if not known:  # it learned from generated slices only
        edge = asked.fov or _fov_of_pixels(info, model)
        known = [Cutting(edge)]
        warnings.append(
            f"warning: {model} doesn't know how its slices were cut from volumes: --fov {edge:g} and --head "
            f"{asked.head or AUTO} taken"
        )
    fov = asked.fov or _agreed([cutting.fov for cutting in known], "--fov", "the whole slice", model)
    head = asked.head or _agreed([cutting.head for cutting in known], "--head", AUTO, model)
    return ConvertOptions(resolution=info.resolution, fov=fov, head=head), warnings


def _fov_of_pixels(info: UNetInfo, model: Path) -> float:
    """The edge of the pictures in mm, by the size of the pixels that the U-Net learned from."""
    pixels = pixels_of(info.archives)
    if pixels is None or not pixels.is_one_size:
        sizes = "of unknown size" if pixels is None else f"of {pixels}"
        raise UserError(
            f"{model} learned from pixels {sizes}: say with --fov how many mm of a slice are to be segmented"
        )
    return pixels.most * info.resolution


def _agreed(values: Sequence[T], option: str, default: str, model: Path) -> T:
    """The value that all archives of a U-Net have. Raises UserError if they differ."""
    if len(set(values)) > 1:
        told = ", ".join(default if value is None else str(value) for value in dict.fromkeys(values))
        raise UserError(f"{model} learned from archives of differing {option} ({told}): choose one with {option}")
    return values[0]


def _for_network(found: Recognized, model: Path, schema: Schema) -> list[Case]:
    """The cases with the contrasts that a U-Net takes, in its order, and without masks."""
    there = found.release.schema.contrasts
    if missing := [name for name in schema.contrasts if name not in there]:
        own = found.release.name == OWN
        remedy = "say with --contrasts name=… what files call them" if own else "it can't segment these cases"
        raise UserError(
            f"{found.source} has the contrasts {', '.join(there)}, but {model} takes {', '.join(schema.contrasts)}: "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; {remedy}"
        )
    places = [there.index(name) for name in schema.contrasts]
    return [replace(case, mask=None, contrasts=tuple(case.contrasts[i] for i in places)) for case in found.cases]


def _with_values_of(found: Recognized, schema: Schema) -> tuple[Schema, list[str]]:
    """A U-Net's schema with the label values of the source, if that has the same classes, and a warning if not."""
    theirs = {c.name: c for c in found.release.schema.classes}
    if not theirs:
        return schema, []
    if set(theirs) != set(schema.class_names):
        return schema, [
            f"warning: {found.release.title} has the classes {', '.join(theirs)}, the U-Net has "
            f"{', '.join(schema.class_names)}: label values are those of the U-Net's archives"
        ]

    def as_there(lesion_class: LesionClass) -> LesionClass:
        return replace(lesion_class, value=theirs[lesion_class.name].value, more_values=())

    return replace(schema, classes=tuple(map(as_there, schema.classes)), ignored=()), []


def _refuse_what_is_there(job: _Job, found: Recognized, asked: PredictOptions) -> None:
    """Raise UserError for files that must not be replaced, and for missing ones, before the long work starts."""
    images = {path.resolve() for case in found.cases for path in case.paths}
    for case in job.cases:
        path = files.refuse_existing(_path(case, asked), asked.force)
        if path.resolve() in images:
            raise UserError(f"{path} is a file of the source: choose another --dest")
        if asked.on_error == "fail":
            case.require_files()


def _known_patients(info: UNetInfo, cases: Sequence[Case]) -> list[str]:
    """Warnings of patients that the U-Net has learned from, or that may be such."""
    patients = {case.patient for case in cases}
    known = shared_patients(info.known_patients, patients)
    warnings = warn_of_alike(info.known_patients, patients)
    if known:
        warnings.append(
            f"warning: the U-Net was trained on {describe_shared(known, info.patients)}: it knows {len(known)} of the "
            f"{count(len(patients), 'patient')}, so a Dice of their masks says nothing about others"
        )
    return warnings


# --- one case after the other -----------------------------------------------------------------------------------------


def _write(job: _Job, asked: PredictOptions) -> tuple[list[Mask], dict[str, str]]:
    """Segment all cases. Returns what was found in each, and why others could not be read."""
    masks: list[Mask] = []
    errors: dict[str, str] = {}
    with (
        files.folder_for(asked.dest),
        Staged(_path(job.cases[0], asked), asked.force) as staged,
        tqdm(job.cases, desc="segmenting", unit="case", disable=None, leave=False) as bar,
    ):
        for case in bar:
            try:
                cut = cut_case(case, "all", _without_classes(job.schema), job.options)
            except UserError as error:
                if asked.on_error == "fail":
                    advice = "; --on-error skip leaves out what can't be read" if len(job.cases) > 1 else ""
                    raise UserError(f"{error}{advice}") from None
                errors[case.name] = str(error)
                bar.write(f"left out: {error}", file=sys.stderr)
                continue
            mask, content = _segment(job, case, cut)
            staged.write(_path(case, asked), content)
            masks.append(mask)
        if not masks:
            raise UserError(f"no case can be read, the first of {len(errors)}: {next(iter(errors.values()))}")
    return masks, errors


def _path(case: Case, asked: PredictOptions) -> Path:
    return asked.dest / f"{case.name}.nii.gz"


def _without_classes(schema: Schema) -> Schema:
    """The schema of images without masks."""
    return replace(schema, classes=(), regions=(), ignored=())


def _segment(job: _Job, case: Case, cut: CaseSlices) -> tuple[Mask, bytes]:
    """Segment the slices of a case. Returns what was found, and the content of its file."""
    shape, affine, pixel = cut.volume.shape, np.array(cut.volume.affine), cut.volume.pixel
    grid = VoxelGrid.of_source(shape, affine, job.options.resolution, pixel)
    classes, beyond = np.zeros(grid.shape, np.uint8), 0  # [L, P, S]
    for start in range(0, len(cut.indices), job.batch):
        pictures = predict_slices(job.unet, cut.contrasts[start : start + job.batch])  # [N, R, R]
        for index, picture in zip(cut.indices[start : start + job.batch], pictures, strict=True):
            grid.put(picture, classes, index)
            beyond += grid.count_beyond(picture)
    values = job.schema.values_from_indices(grid.to_file(classes))
    voxels = np.bincount(classes.ravel(), minlength=job.schema.num_maps)[1:].tolist()
    counted = {_UNSEEN: grid.count_unfilled(cut.head), _BEYOND: beyond}
    mask = Mask(
        case=case.name,
        voxels=dict(zip(job.schema.class_names, voxels, strict=True)),
        remarks=(*cut.remarks, *_remarks(job.unet.info, grid, pixel), *([] if any(voxels) else ["no lesion found"])),
        counted={remark: n for remark, n in counted.items() if n},
    )
    return mask, nifti_bytes(values, grid.affine, f"by a U-Net; {grid.words}")


def _remarks(info: UNetInfo, grid: VoxelGrid, pixel: float) -> Iterator[str]:
    """What a user should know about the pixels of a mask."""
    if not grid.exact:
        yield _RESAMPLED
    learned = pixels_of(info.archives)
    if learned is not None and not PixelSize(pixel, pixel).is_within(learned):
        yield f"pixels of {pixel:.3g} mm, but the U-Net learned from pixels of {learned}"

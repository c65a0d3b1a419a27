"""Evaluate a U-Net on an archive: the Dice of every patient, a table, and a picture of three of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dnnlib import config as configs
from dnnlib import files
from dnnlib.errors import UserError
from segmentation import report, scores
from segmentation import unet as unets
from segmentation.data import describe
from segmentation.fit import MODEL
from segmentation.scores import Evaluation, PatientDice
from slices.archive import ArchiveReader
from slices.leaks import describe_shared, shared_patients

RESULTS, PICTURE = "results.json", "patients.png"
_BATCH = 64  # slices


class PatientVolume(NamedTuple):
    """All slices of one patient: the contrast that is shown, and class indices by truth and prediction, [S, H, W]."""

    patient: str
    background: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def evaluate(
    model_path: str | os.PathLike,
    data_path: str | os.PathLike,
    outdir: str | os.PathLike,
    force: bool = False,
    allow_overlap: bool = False,
) -> Evaluation:
    """Evaluate a saved U-Net; write results.json and patients.png into `outdir`.

    model_path: a U-Net or the folder that `train` wrote. force: replace those files if they are there. allow_overlap:
    go on, and record it, if the U-Net knows a patient of the archive. Raises UserError for that otherwise, and for a
    model or an archive that can't be used, or that don't fit each other.
    """
    outdir, model_path = Path(outdir), _model_file(model_path)
    for name in (RESULTS, PICTURE):
        files.refuse_existing(outdir / name, force)
    unet = unets.load(model_path, unets.default_device())
    reader = ArchiveReader(data_path)
    _require_fit(unet, model_path, reader)
    overlap = find_overlap(unet.info, model_path, reader, allow_overlap)

    groups = reader.by_patient()
    volumes = predict_patients(unet, reader, list(groups))
    bar = tqdm(volumes, total=len(groups), desc="evaluating", unit="patient", disable=None, leave=False)
    patients = tuple(scores.score_patient(v.patient, v.prediction, v.truth, reader.schema) for v in bar)
    evaluation = _summarise(unet, model_path, reader, overlap, patients)

    chosen = report.worst_median_best(evaluation)
    shown = {v.patient: v for v in predict_patients(unet, reader, [c.patient for c in chosen])}
    files.make_folder(outdir)
    report.draw_patients(outdir / PICTURE, chosen, shown, reader.schema)
    files.write_json(outdir / RESULTS, configs.to_json(evaluation))
    return evaluation


def load(path: str | os.PathLike) -> Evaluation:
    """Read a results.json. Raises UserError naming the file when it is something else."""
    content = files.read_json(path)
    if not isinstance(content, dict) or content.get("format") != scores.FORMAT:
        raise UserError(f"{path}: not the results of an evaluation (its format should be {scores.FORMAT!r})")
    if content.get("version") != scores.VERSION:
        raise UserError(
            f"{path}: version {content.get('version')!r}; this program reads version {scores.VERSION}: evaluate again"
        )
    return configs.from_json(Evaluation, content, str(path))


def predict_patients(unet: unets.UNet, reader: ArchiveReader, patients: Sequence[str]) -> Iterator[PatientVolume]:
    """Segment all slices of these patients, in their order. Batches run across patients: a fake has one slice."""
    groups, schema = reader.by_patient(), reader.schema
    order = [i for patient in patients for i in groups[patient]]
    waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # background, truth, prediction of single slices
    todo = iter(patients)
    patient = next(todo, None)
    for start in range(0, len(order), _BATCH):
        contrasts, truth = schema.split(np.stack([reader.read(i) for i in order[start : start + _BATCH]]))
        waiting += zip(contrasts[:, schema.shown], truth, unets.predict(unet, contrasts), strict=True)
        while patient is not None and len(waiting) >= len(groups[patient]):
            complete, waiting = waiting[: len(groups[patient])], waiting[len(groups[patient]) :]
            yield PatientVolume(patient, *(np.stack(part) for part in zip(*complete, strict=True)))
            patient = next(todo, None)


def _model_file(path: str | os.PathLike) -> Path:
    path = Path(path)
    if path.is_dir() and not (path / MODEL).exists():
        raise UserError(f"{path}: holds no {MODEL}; expected the --outdir of python -m segmentation train")
    return path / MODEL if path.is_dir() else path


def _require_fit(unet: unets.UNet, model_path: Path, reader: ArchiveReader) -> None:
    info = unet.info
    if reader.schema.channels != info.schema.channels:
        raise UserError(
            f"{reader.path} has the channels {reader.schema.describe()}, but {model_path} was trained on "
            f"{info.schema.describe()}; evaluate it on slices of that schema"
        )
    if reader.resolution != info.resolution:
        raise UserError(
            f"{reader.path} has {reader.resolution}×{reader.resolution} pixels, but {model_path} was trained on "
            f"{info.resolution}×{info.resolution}; convert the archive at --resolution {info.resolution}"
        )


def find_overlap(info: unets.UNetInfo, model_path: Path, reader: ArchiveReader, allow: bool) -> tuple[str, ...]:
    """Patients of the archive whom the U-Net knows, sorted. Raises UserError if there are any, unless that is allowed.

    Only the names in the archive count, not whom a GAN behind it saw: how a U-Net of real slices does on the fakes that
    were learned from the same patients is a fair question.
    """
    overlap = shared_patients(info.known_patients, reader.info.patients)
    if overlap and not allow:
        raise UserError(
            f"{model_path} was trained on {describe_shared(overlap, info.patients)}: it knows {len(overlap)} of the "
            f"{len(reader.info.patients)} patients of {reader.path}, so its Dice would say nothing about others; give "
            "an archive of other patients, or insist with --allow-overlap"
        )
    return overlap


def _summarise(
    unet: unets.UNet,
    model_path: Path,
    reader: ArchiveReader,
    overlap: tuple[str, ...],
    patients: tuple[PatientDice, ...],
) -> Evaluation:
    summaries = [(t, scores.summarise(patients, t)) for t in scores.targets_of(reader.schema)]
    return Evaluation(
        format=scores.FORMAT,
        version=scores.VERSION,
        measure=scores.MEASURE,
        data=describe(reader),
        overlap=overlap,
        regions={t.name: s for t, s in summaries if t.kind == "region"},
        labels={t.name: s for t, s in summaries if t.kind == "label"},
        patients=patients,
        model=scores.ModelFacts(model_path.name, files.sha256(model_path), unet.info),
    )

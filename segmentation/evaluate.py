"""Evaluation of a U-Net on an archive: Dice and HD95 of every examination, and a picture of three of them."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from dnnlib import config as configs
from dnnlib import files
from dnnlib.errors import UserError
from dnnlib.publish import Staged
from dnnlib.text import count
from segmentation.archive_facts import ArchiveFacts, collect_facts, pixels_of
from segmentation.config import EVALUATED_AT_ONCE
from segmentation.fit import MODEL
from segmentation.hausdorff import stack_of
from segmentation.predict import predict_examinations
from segmentation.report import draw_examinations, notes_on, worst_median_best
from segmentation.scores import (
    FORMAT,
    MEASURE,
    VERSION,
    Evaluation,
    ExaminationDice,
    ModelFacts,
    score_examination,
    summarize,
    targets_of,
)
from segmentation.unet import TrainedUNet, UNetInfo, load_unet
from slices.archive.reader import ArchiveReader
from slices.leaks import describe_shared, shared_patients
from torch_utils.distributed import default_device

RESULTS, PICTURE = "results.json", "patients.png"


def evaluate_archive(
    model_path: str | os.PathLike,  # file of a U-Net, or the folder that `train` wrote
    data_path: str | os.PathLike,
    outdir: str | os.PathLike,
    force: bool = False,  # replace existing results
    allow_overlap: bool = False,  # go on if the U-Net knows patients of the archive; results.json will say so
    allow_other_pixels: bool = False,  # go on if it learned from pixels of another size; results.json will say so
    batch: int = EVALUATED_AT_ONCE,
) -> Evaluation:
    """Evaluate a saved U-Net. Writes results.json and patients.png into `outdir`.

    Raises UserError if the model or the archive can't be read, if they don't fit each other, and for overlap or other
    pixels that are not allowed.
    """
    outdir, model_path = Path(outdir), model_file(model_path)
    for name in (RESULTS, PICTURE):
        files.refuse_existing(outdir / name, force)
    with files.folder_for(outdir):
        _require_writable(outdir)
        unet = load_unet(model_path, default_device())
        reader = ArchiveReader(data_path)
        _require_fit(unet.info, model_path, reader)
        facts = collect_facts(reader)
        _require_pixels(unet.info, model_path, reader, facts, allow_other_pixels)
        overlap = find_overlap(unet.info, model_path, reader, allow_overlap)

        examinations = _score(unet, reader, batch)
        model = ModelFacts(model_path.name, files.sha256(model_path), unet.info)
        evaluation = _evaluation(examinations, facts, overlap, model)
        chosen = worst_median_best(evaluation)
        names = [(choice.examination.patient, choice.examination.volume) for choice in chosen]
        # Predicted a second time: keeping all predictions would take the memory of the whole archive.
        shown = list(predict_examinations(unet, reader, names, batch))
        with Staged(outdir / RESULTS, force) as staged:
            draw_examinations(staged.place(outdir / PICTURE), chosen, shown, reader.schema)
            staged.write(outdir / RESULTS, files.json_bytes(evaluation))
    return evaluation


def _score(unet: TrainedUNet, reader: ArchiveReader, batch: int) -> tuple[ExaminationDice, ...]:
    """Score every examination of the archive."""
    names = list(reader.by_examination())
    segmented = predict_examinations(unet, reader, names, batch)
    results = []
    with tqdm(total=len(names), desc="evaluating", unit="examination", disable=None, leave=False) as bar:
        for (patient, volume), one in zip(names, segmented, strict=True):
            source = None if volume is None else reader.info.volumes[volume]
            of, stack = None if source is None else source.slices, stack_of(source, one.places)
            results.append(
                score_examination(patient, one.prediction, one.truth, one.inside, reader.schema, volume, of, stack)
            )
            bar.update()
    return tuple(results)


def _evaluation(
    examinations: tuple[ExaminationDice, ...], data: ArchiveFacts, overlap: tuple[str, ...], model: ModelFacts
) -> Evaluation:
    """Make the record of an evaluation: scores, means over the patients, and notes on them."""
    summaries = [(target, summarize(examinations, target)) for target in targets_of(model.info.schema)]
    evaluation = Evaluation(
        format=FORMAT,
        version=VERSION,
        measure=MEASURE,
        notes=(),
        data=data,
        overlap=overlap,
        regions={target.name: summary for target, summary in summaries if target.kind == "region"},
        labels={target.name: summary for target, summary in summaries if target.kind == "label"},
        examinations=examinations,
        model=model,
    )
    # Notes are made from the finished record, which then gets them.
    return replace(evaluation, notes=tuple(notes_on(evaluation)))


def load_evaluation(path: str | os.PathLike) -> Evaluation:
    """Read a results.json. Raises UserError naming the file if it is something else."""
    content = files.read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: not the results of an evaluation (its format should be {FORMAT!r})")
    if content.get("version") != VERSION:
        raise UserError(
            f"{path}: version {content.get('version')!r}; this program reads version {VERSION}: evaluate again"
        )
    return configs.from_json(Evaluation, content, str(path))


def model_file(path: str | os.PathLike) -> Path:
    """The file of a U-Net, which may be given as the folder that `train` wrote."""
    path = Path(path)
    if path.is_dir() and not (path / MODEL).exists():
        raise UserError(f"{path}: holds no {MODEL}; expected the --outdir of python -m segmentation train")
    return path / MODEL if path.is_dir() else path


def _require_fit(info: UNetInfo, model_path: Path, reader: ArchiveReader) -> None:
    """Raise UserError unless the archive has the channels and the resolution that the U-Net was trained on."""
    if reader.schema.channels != info.schema.channels:
        raise UserError(
            f"{reader.path} has the channels {reader.schema.describe_channels()}, but {model_path} was trained on "
            f"{info.schema.describe_channels()}; evaluate it on slices of that schema"
        )
    if reader.resolution != info.resolution:
        raise UserError(
            f"{reader.path} has {reader.resolution}×{reader.resolution} pixels, but {model_path} was trained on "
            f"{info.resolution}×{info.resolution}; convert the archive at --resolution {info.resolution}"
        )


def _require_pixels(info: UNetInfo, model_path: Path, reader: ArchiveReader, facts: ArchiveFacts, allow: bool) -> None:
    """Raise UserError if the archive's pixels differ in size from those of the training, unless `allow`."""
    learned, tested = pixels_of(info.archives), pixels_of([facts])
    if not allow and learned and tested and not tested.is_within(learned):
        raise UserError(
            f"{reader.path} has pixels of {tested}, but {model_path} learned from pixels of {learned}: convert both "
            "with the same --resolution and --fov, or insist with --allow-other-pixels"
        )


def _require_writable(folder: Path) -> None:
    """Raise OSError before the work begins if no file can be created in a folder."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def find_overlap(info: UNetInfo, model_path: Path, reader: ArchiveReader, allow: bool) -> tuple[str, ...]:
    """Patients of the archive that the U-Net knows, sorted. Raises UserError if there are any, unless `allow`.

    Only patients of the archive's slices count, not those that a generator of the slices saw. So a U-Net of real slices
    can be tested on the fakes of a GAN that learned from the same patients.
    """
    overlap = shared_patients(info.known_patients, reader.info.patients)
    if overlap and not allow:
        raise UserError(
            f"{model_path} was trained on {describe_shared(overlap, info.patients)}: it knows {len(overlap)} of the "
            f"{count(len(reader.info.patients), 'patient')} of {reader.path}, so its Dice would say nothing about "
            "others; give an archive of other patients, or insist with --allow-overlap"
        )
    return overlap

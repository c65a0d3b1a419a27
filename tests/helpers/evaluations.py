"""Evaluations of U-Nets that were never trained: numbers for tables and pictures."""

from dataclasses import replace

from segmentation.archive_facts import ArchiveFacts
from segmentation.config import TrainUNetConfig, UNetConfig
from segmentation.draws import Drawn
from segmentation.scores import VERSION, Evaluation, ExaminationDice, ModelFacts, TargetDice, summarize, targets_of
from segmentation.unet import UNetInfo
from slices.schema import BRATS, Schema

LEARNED = ArchiveFacts("real.zip", "1" * 64, 4, 1, 1, (3.125, 3.125), 0)
TESTED = replace(LEARNED, file="test.zip", sha256="3" * 64)


def examination(dice: float, schema: Schema = BRATS, patient="p", volume=None, of=None, **target) -> ExaminationDice:
    """An examination of two slices with the same Dice for all regions and classes. target: fields of TargetDice."""
    one = TargetDice(
        **{"dice": dice, "truth": 9, "predicted": 5, "masked_dice": dice, "removed": 0, "hd95": None, **target}
    )
    regions, labels = ({t.name: one for t in targets_of(schema) if t.kind == kind} for kind in ("region", "label"))
    missing, diagonal = (None, None) if one.hd95 is None else (0, 90.0)
    return ExaminationDice(patient, volume, 2, of, missing, diagonal, regions, labels)


def evaluation(*examinations: ExaminationDice, schema: Schema = BRATS, tested=TESTED, **training) -> Evaluation:
    """An evaluation of a U-Net that drew 20 slices without lesion in 10 steps of 10."""
    told = TrainUNetConfig(**{"steps": 10, "batch": 10, **training})
    network = UNetConfig(schema.num_contrasts, schema.num_maps, told.width)
    info = UNetInfo(schema, 64, network, told, "", (LEARNED,), (LEARNED.slices,), ("a",), (), Drawn(75, 20, 5))
    summaries = [(t, summarize(examinations, t)) for t in targets_of(schema)]
    return Evaluation(
        format="segmentation-dice",
        version=VERSION,
        measure="",
        notes=("a note",),
        data=tested,
        overlap=(),
        regions={t.name: summary for t, summary in summaries if t.kind == "region"},
        labels={t.name: summary for t, summary in summaries if t.kind == "label"},
        examinations=examinations,
        model=ModelFacts("unet.safetensors", "2" * 64, info),
    )

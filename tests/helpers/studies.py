"""Finished experiments whose U-Nets were never trained: archives, networks and numbers for tables and pages."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from helpers.drawn import draw_slice
from helpers.evaluations import evaluation, examination
from segmentation.archive_content import content_of
from segmentation.archive_facts import collect_facts
from segmentation.arms import Arm, parse_arms
from segmentation.config import UNetConfig
from segmentation.fit import LossPoint, TrainRecord
from segmentation.results import Row, by_patient
from segmentation.scores import Target, targets_of
from segmentation.statistics import compare, family, with_holm
from segmentation.study import Agreement, Archive, Convergence, Study, TrainedUNet
from segmentation.unet import TrainedUNet as Network
from segmentation.unet import build_unet, save_unet
from slices.archive.format import Volume
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.schema import Schema

_LPS = ((-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
_LEARNS = {"R": 0.9, "F": 0.84, "F+R": 0.93, "3F+R": 0.94, "3A+R": 0.91}  # arm -> its mean Dice


def make_study(
    folder: Path,
    schema: Schema,
    patients: list[str],
    size: int = 32,
    slices: int = 6,
    table: str = "table1",
    replicates: int = 3,
) -> Study:
    """An experiment on drawn slices; the last patient has no lesion, and no U-Net finds anything in the first one."""
    folder.mkdir(parents=True, exist_ok=True)
    test = _archive(_write_volumes(folder / "test.zip", schema, patients, size, slices))
    real = _archive(_write_volumes(folder / "train.zip", schema, [f"t{n}" for n in range(5)], size, slices))
    fake = _archive(_write_fakes(folder / "fake.zip", schema, size), "5" * 64)
    arms = parse_arms(table)
    random = np.random.RandomState(4)
    rows = tuple(
        row
        for replicate in range(1, replicates + 1)
        for arm in arms
        for row in _rows(random, table, arm, replicate, patients, schema, test)
    )
    scores = {target: {arm.name: by_patient(rows, arm.name, target) for arm in arms} for target in targets_of(schema)}
    headline = [target for target in scores if target.kind == next(iter(scores)).kind]
    comparisons = [
        compare(scores[t][claim.first], scores[t][claim.second], claim, t.title)
        for claim in family(table, [arm.name for arm in arms])
        for t in headline
    ]
    dice = {arm.name: {t.title: (0.8 + 0.01 * n, 0.85, 0.86) for t in scores} for n, arm in enumerate(arms)}
    return Study(
        name=table,
        title={"table1": "Table 1", "table2": "Table 2, on few slices"}.get(table, "Arms"),
        schema=schema,
        arms=arms,
        replicates=replicates,
        options={"steps": 700, "batch": 8, "lr": 0.01},
        margin=0.03,
        real=real,
        fakes=(fake,),
        test=test,
        val=None,
        rows=rows,
        comparisons=with_holm(comparisons),
        unets={(arm.name, r): _unet(folder, arm, r, schema, size) for r in range(1, replicates + 1) for arm in arms},
        convergence=tuple(Convergence(arm.name, (350, 700, 1400), dice[arm.name], arm.name == "F") for arm in arms),
        content={"real": content_of(ArchiveReader(real.path)), "fakes 1": content_of(ArchiveReader(fake.path))},
        agreement=(
            Agreement("test patients", {t.title: 0.93 for t in scores}),
            Agreement("fakes 1", {t.title: 0.71 for t in scores}),
        ),
        gans=1,
        notes=("training slices without lesion: 20 % of the real",),
        commands=("python -m segmentation experiment --real train.zip --fake '<b>fake</b>.zip'",),
        made={"StyleGAN2-MR": "0.2.0", "commit": "0123456789ab", "Python": "3.11"},
    )


def _archive(path: Path, *snapshots: str) -> Archive:
    return Archive(path, collect_facts(ArchiveReader(path)), snapshots)


def _write_volumes(path: Path, schema: Schema, patients: list[str], size: int, slices: int) -> Path:
    """An archive with one volume of each patient, twice as deep as the archive shows."""
    random = np.random.RandomState(5)
    windows = dict.fromkeys(schema.contrasts, (0.0, 1.0))
    with ArchiveWriter(path, schema, size, {}) as writer:
        for n, patient in enumerate(patients):
            writer.volumes[f"v{n}"] = Volume(patient, (size, size, 2 * slices), _LPS, 1.0, windows)
            for k in range(slices):
                stored = draw_slice(random, size, schema, lesion=n < len(patients) - 1)
                writer.add(stored, patient=patient, volume=f"v{n}", index=slices // 2 + k)
    return path


def _write_fakes(path: Path, schema: Schema, size: int) -> Path:
    random = np.random.RandomState(6)
    with ArchiveWriter(path, schema, size, {}, seen=("t0",)) as writer:
        for seed in range(14):
            writer.add(draw_slice(random, size, schema), patient=f"seed{seed}", seed=seed, snapshot="5" * 64)
    return path


def _rows(
    random: np.random.RandomState,
    table: str,
    arm: Arm,
    replicate: int,
    patients: list[str],
    schema: Schema,
    test: Archive,
) -> Iterator[Row]:
    for n, patient in enumerate(patients):
        for target in targets_of(schema):
            yield _row(random, table, arm, replicate, patient, n, target, n == len(patients) - 1, test)


def _row(random, table, arm: Arm, replicate, patient, n, target: Target, free: bool, test: Archive) -> Row:
    missed = n == 0 and not free
    found = np.clip(_LEARNS.get(arm.name, 0.9) - 0.02 * (n % 5) + 0.015 * random.randn(), 0, 1)
    dice = 0.0 if missed else 1.0 if free else float(found)
    return Row(
        experiment=table,
        arm=arm.name,
        replicate=replicate,
        patient=patient,
        examination=f"v{n}",
        kind=target.kind,
        target=target.name,
        dice=dice,
        masked_dice=dice,
        hd95_mm=100.0 if missed else 0.0 if free else float(random.gamma(2, 3)),
        truth_voxels=0 if free else 40,
        predicted_voxels=0 if free or missed else 42,
        outside_voxels=0,
        truth_empty=free,
        prediction_empty=free or missed,
        unet_seed=arm.seed(0, replicate),
        gan="5" * 64 if arm.uses_fakes else "",
        unet_sha256="2" * 64,
        real_sha256="1" * 64 if arm.uses_real else "",
        fake_sha256="4" * 64 if arm.uses_fakes else "",
        test_sha256=test.facts.sha256,
    )


def _unet(folder: Path, arm: Arm, replicate: int, schema: Schema, size: int) -> TrainedUNet:
    """A network with its first weights; only that of the first replicate is there as a file."""
    tested = evaluation(examination(0.9, schema), schema=schema, width=2, seed=arm.seed(0, replicate))
    told = tested.model.info
    network = UNetConfig(schema.num_contrasts, schema.num_maps, 2)
    info = replace(told, resolution=size, network=network)
    model = folder / f"{arm.slug}-{replicate}.safetensors"
    if replicate == 1:
        save_unet(model, Network(build_unet(network, arm.seed(7, replicate)), info))
    curve = tuple(
        LossPoint(step, 1 / (1 + step / 100), step / 1000 if step % 140 == 0 else None) for step in range(70, 701, 70)
    )
    return TrainedUNet(model, TrainRecord(str(model), info, "cpu", 61.5, curve), tested)

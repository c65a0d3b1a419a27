"""Checks of an experiment's archives, before any training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dnnlib.errors import UserError
from dnnlib.text import count, name_some
from segmentation.arms import Arm
from segmentation.experiment import Archives, Plan
from segmentation.hausdorff import refuse_gaps
from segmentation.selection import (
    Selection,
    check_arm,
    classes_in,
    lesions_in,
    refuse_absent_classes,
    refuse_share,
    refuse_validation,
    select_checked,
)
from segmentation.unet import configure_unet
from slices.archive.compatible import require_same_kind
from slices.archive.reader import ArchiveReader
from slices.leaks import doubts

FEWEST_PATIENTS = 3  # of a test; with two, an interval of one degree of freedom reaches 13 standard errors to each side


def check_experiment(plan: Plan, archives: Archives) -> list[str]:
    """Raise UserError for archives that the experiment can't use. Returns warnings.

    Refused are archives of another schema, resolution or pixel size; fakes of a GAN that saw test patients; too few
    slices for an arm; classes that are absent from training or test; a test archive of fakes, of too few patients, or
    with gaps in its volumes; validation patients that are in training or test.
    """
    real, test = ArchiveReader(archives.real), ArchiveReader(archives.test)
    fakes = _read_fakes(archives.fakes)
    val = [] if archives.val is None else [ArchiveReader(archives.val)]
    for other in (*fakes, test, *val):
        require_same_kind(real, other)
        _require_pixels(real, other)
    configure_unet(real.schema, real.resolution, plan.options["width"])
    _require_patients(test)
    for arm, fake in _pairs(plan.arms, fakes):
        check_arm(arm, real, fake, [archives.test])
    refuse_gaps(test)  # after the patients: a training archive given as --test would be told of its gaps only
    selections = [(arm, select_checked(arm, real, fake)) for arm, fake in _pairs(plan.arms, fakes)]
    for one in val:
        for _, selected in selections:
            refuse_validation(one, selected, [archives.test])
    # From here on slices are read.
    refuse_absent_classes(test, classes_in(test))
    found = {reader: classes_in(reader) for reader in (real, *fakes)}
    refuse_absent_classes(real, found[real])
    lacking = []
    for arm, selected in selections:
        rows = [found[one.archive] for one in selected]
        refuse_share(plan.options.get("lesion_free"), lesions_in(selected, rows), selected)
        lacking += _lacking(arm, selected, rows)
    return [*doubts([real, *fakes], [archives.test]), *lacking, *_unused(plan, archives)]


def _read_fakes(paths: Sequence[str]) -> list[ArchiveReader]:
    """Open the archives of fakes. Raises UserError that names the replicate whose archive is not there."""
    for replicate, path in enumerate(paths, start=1):
        if len(paths) > 1 and not Path(path).exists():
            raise UserError(
                f"{path}: no such file. Replicate {replicate} of {len(paths)} learns from it: generate it, or take "
                f"--replicates={max(replicate - 1, 1)}"
            )
    return [ArchiveReader(path) for path in paths]


def _pairs(arms: Sequence[Arm], fakes: Sequence[ArchiveReader]) -> Iterator[tuple[Arm, ArchiveReader | None]]:
    """Every arm, with each archive of fakes that it learns from; with None if it learns from none, or none is given."""
    for arm in arms:
        for fake in fakes if arm.uses_fakes and fakes else (None,):
            yield arm, fake


def _require_patients(test: ArchiveReader) -> None:
    """Raise UserError unless an archive holds real slices of enough patients."""
    if any(record.generated is not None for record in test.info.slices) or test.info.seen:
        raise UserError(f"{test.path} was given as --test, but holds generated slices: give real ones")
    if len(patients := test.info.patients) < FEWEST_PATIENTS:
        raise UserError(
            f"{test.path}: {count(len(patients), 'patient')} ({name_some(patients)}); an experiment needs "
            f"{FEWEST_PATIENTS} test patients or more: fewer tell too little of how patients differ for any interval"
        )


def _require_pixels(real: ArchiveReader, other: ArchiveReader) -> None:
    """Raise UserError if an archive has pixels of another size than the real training slices."""
    learned, pixels = real.info.pixels, other.info.pixels
    if learned and pixels and not pixels.is_within(learned):
        raise UserError(
            f"{other.path} has pixels of {pixels}, but {real.path} has pixels of {learned}: convert both with the same "
            "--resolution and --fov"
        )


def _lacking(arm: Arm, selected: Sequence[Selection], found: Sequence[np.ndarray]) -> list[str]:
    """A warning if no slice that an arm learns from has some class, as may be with the fakes of a poor GAN.

    found: for every selection, what `classes_in` gives for its archive.
    """
    have = np.any([rows[: one.first].any(axis=0) for one, rows in zip(selected, found, strict=True)], axis=0)
    schema, files = selected[0].archive.schema, " and ".join(one.archive.path.name for one in selected)
    if not (lacking := ", ".join(np.array(schema.class_names)[~have].tolist())):
        return []
    return [f"warning: arm {arm.name}: none of its slices of {files} has the class {lacking}, so it can't learn it"]


def _unused(plan: Plan, archives: Archives) -> list[str]:
    """A remark if fakes are given, but no arm learns from them."""
    return [] if plan.uses_fakes or not archives.fakes else ["note: no arm learns from the fakes of --fake"]

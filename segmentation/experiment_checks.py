"""Checks of an experiment's archives, before any training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dnnlib.errors import UserError
from dnnlib.text import count, name_some
from segmentation.arms import Arm
from segmentation.data import check_arm, refuse_absent_classes
from segmentation.experiment import Archives, Plan
from segmentation.hausdorff import refuse_gaps
from slices.archive.compatible import require_same_kind
from slices.archive.reader import ArchiveReader
from slices.leaks import doubts, refuse_leaks, refuse_shared


def check_experiment(plan: Plan, archives: Archives) -> list[str]:
    """Raise UserError for archives that the experiment can't use. Returns warnings.

    Refused are archives of another schema, resolution or pixel size; fakes of a GAN that saw test patients; too few
    slices for an arm; classes that are absent from training or test; a test archive of fakes, of one patient, or with
    gaps in its volumes.
    """
    if plan.uses_fakes and not archives.fakes:
        wanting = next(arm for arm in plan.arms if arm.fakes)
        raise UserError(f"the arm {wanting.name} learns from fakes: give --fake, an archive that generate.py wrote")
    real, test = ArchiveReader(archives.real), ArchiveReader(archives.test)
    fakes = [ArchiveReader(path) for path in archives.fakes]
    val = [ArchiveReader(archives.val)] if archives.val is not None else []
    for other in (*fakes, test, *val):
        require_same_kind(real, other)
    _require_test_of_patients(test)
    _require_pixels(real, [*fakes, test, *val])
    learned = [real, *fakes]
    refuse_leaks([*learned, *val], [archives.test])
    for one in val:
        refuse_shared(real, one)
    for arm, fake in _pairs(plan.arms, fakes):
        check_arm(arm, real, fake, plan.options.get("lesion_free"))
    refuse_absent_classes(real, "training")
    refuse_absent_classes(test, "test")
    refuse_gaps(test)
    return [*doubts(learned, [archives.test]), *_unused(plan, archives)]


def _pairs(arms: Sequence[Arm], fakes: Sequence[ArchiveReader]) -> Iterator[tuple[Arm, ArchiveReader | None]]:
    """Every arm, with each archive of fakes that it learns from."""
    for arm in arms:
        if not arm.fakes:
            yield arm, None
        for fake in fakes if arm.fakes else ():
            yield arm, fake


def _require_test_of_patients(test: ArchiveReader) -> None:
    """Raise UserError unless the archive holds real slices of two patients or more."""
    if any(record.seed is not None for record in test.info.slices):
        raise UserError(f"{test.path}: holds generated slices; --test takes real patients, test.zip of convert")
    if len(patients := test.info.patients) < 2:
        raise UserError(
            f"{test.path}: {count(len(patients), 'patient')} ({name_some(patients)}); a test needs two or more, as one "
            "says nothing about others"
        )


def _require_pixels(real: ArchiveReader, others: Sequence[ArchiveReader]) -> None:
    """Raise UserError for archives with pixels of another size than the real training slices."""
    learned = real.info.pixels
    for other in others:
        pixels = other.info.pixels
        if learned and pixels and not pixels.is_within(learned):
            raise UserError(
                f"{other.path} has pixels of {pixels}, but {real.path} has pixels of {learned}: convert both with the "
                "same --resolution and --fov"
            )


def _unused(plan: Plan, archives: Archives) -> list[str]:
    """A remark if fakes are given, but no arm learns from them."""
    return [] if plan.uses_fakes or not archives.fakes else ["note: no arm learns from the fakes of --fake"]

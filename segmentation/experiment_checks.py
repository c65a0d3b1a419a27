"""Checks of an experiment's archives, before any training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dnnlib.errors import UserError
from dnnlib.text import count, name_some
from segmentation.arms import Arm
from segmentation.experiment import Archives, Plan
from segmentation.hausdorff import refuse_gaps
from segmentation.selection import (
    check_arm,
    classes_in,
    lesions_in,
    refuse_absent_classes,
    refuse_share,
    select_checked,
)
from slices.archive.compatible import require_same_kind
from slices.archive.reader import ArchiveReader
from slices.leaks import doubts, refuse_leaks, refuse_shared


def check_experiment(plan: Plan, archives: Archives) -> list[str]:
    """Raise UserError for archives that the experiment can't use. Returns warnings.

    Refused are archives of another schema, resolution or pixel size; fakes of a GAN that saw test patients; too few
    slices for an arm; classes that are absent from training or test; a test archive of fakes, of one patient, or with
    gaps in its volumes.
    """
    real, test = ArchiveReader(archives.real), ArchiveReader(archives.test)
    fakes = [ArchiveReader(path) for path in archives.fakes]
    val = [ArchiveReader(archives.val)] if archives.val is not None else []
    for other in (*fakes, test, *val):
        require_same_kind(real, other)
        _require_pixels(real, other)
    _require_patients(test)
    refuse_gaps(test)
    for one in val:
        refuse_leaks([one], [archives.test])
        refuse_shared(real, one)
    for arm, fake in _pairs(plan.arms, fakes):
        check_arm(arm, real, fake, [archives.test])
    # From here on slices are read.
    refuse_absent_classes(test, classes_in(test))
    found = {reader: classes_in(reader) for reader in (real, *fakes)}
    refuse_absent_classes(real, found[real])
    for arm, fake in _pairs(plan.arms, fakes):
        selected = select_checked(arm, real, fake)
        has_lesion = lesions_in(selected, [found[one.archive] for one in selected])
        refuse_share(plan.options.get("lesion_free"), has_lesion, selected)
    return [*doubts([real, *fakes], [archives.test]), *_unused(plan, archives)]


def _pairs(arms: Sequence[Arm], fakes: Sequence[ArchiveReader]) -> Iterator[tuple[Arm, ArchiveReader | None]]:
    """Every arm, with each archive of fakes that it learns from; with None if it learns from none, or none is given."""
    for arm in arms:
        for fake in fakes if arm.uses_fakes and fakes else (None,):
            yield arm, fake


def _require_patients(test: ArchiveReader) -> None:
    """Raise UserError unless an archive holds real slices of two patients or more."""
    if any(record.generated is not None for record in test.info.slices) or test.info.seen:
        raise UserError(f"{test.path} was given as --test, but holds generated slices: give real ones")
    if len(patients := test.info.patients) < 2:
        raise UserError(
            f"{test.path}: {count(len(patients), 'patient')} ({name_some(patients)}); a test needs two or more, as one "
            "says nothing about others"
        )


def _require_pixels(real: ArchiveReader, other: ArchiveReader) -> None:
    """Raise UserError if an archive has pixels of another size than the real training slices."""
    learned, pixels = real.info.pixels, other.info.pixels
    if learned and pixels and not pixels.is_within(learned):
        raise UserError(
            f"{other.path} has pixels of {pixels}, but {real.path} has pixels of {learned}: convert both with the same "
            "--resolution and --fov"
        )


def _unused(plan: Plan, archives: Archives) -> list[str]:
    """A remark if fakes are given, but no arm learns from them."""
    return [] if plan.uses_fakes or not archives.fakes else ["note: no arm learns from the fakes of --fake"]

"""Which slices of which archives a U-Net learns from, and what is refused before it does."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from dnnlib.errors import UserError
from dnnlib.text import count, name_some
from segmentation.arms import MOST_FLIPS, Arm
from slices.archive.compatible import refuse_twice, require_same_kind
from slices.archive.format import SliceRecord
from slices.archive.reader import ArchiveReader
from slices.leaks import describe_shared, refuse_leaks, refuse_test_part, shared_patients
from slices.schema import Schema

# Axes of [..., H, W] along which a slice is turned over. Then R's flips, in the order in which an arm takes them:
# left-right, up-down, both.
AS_IT_IS, *FLIPS = (), (-1,), (-2,), (-2, -1)
assert len(FLIPS) == MOST_FLIPS


@dataclass(frozen=True)
class Selection:
    """Slices of one archive that a U-Net learns from."""

    archive: ArchiveReader
    first: int  # so many of its slices, in its order
    turns: tuple[tuple[int, ...], ...] = (AS_IT_IS,)  # in which each of them comes

    def __len__(self) -> int:
        """Number of slices that it learns from."""
        return self.first * len(self.turns)

    @property
    def records(self) -> tuple[SliceRecord, ...]:
        """Records of the slices, each once."""
        return self.archive.info.slices[: self.first]


def select_all(paths: Sequence[str | os.PathLike], exclude: Iterable[str | os.PathLike] = ()) -> list[Selection]:
    """All slices of some archives.

    exclude: archives whose patients must not be learned from.
    Raises UserError for archives that differ in schema or resolution or that hold a slice twice, and for patients that
    must not be learned from: those in `exclude` or in the test part of a split.
    """
    if not paths:
        raise UserError("no archive to train on: give at least one --data")
    archives = [ArchiveReader(path) for path in paths]
    _check_together(archives, exclude)
    return [Selection(archive, len(archive)) for archive in archives]


def select_arm(
    arm: Arm, paths: Sequence[str | os.PathLike], exclude: Iterable[str | os.PathLike] = ()
) -> list[Selection]:
    """The slices of an arm. paths: the archive of R, then that of the fakes if the arm uses fakes.

    Raises UserError as `select_all` and `check_arm` do.
    """
    real, *fakes = [ArchiveReader(path) for path in paths]
    check_arm(arm, real, fakes[0] if fakes else None, exclude)
    return select_checked(arm, real, fakes[0] if fakes else None)


def select_checked(arm: Arm, real: ArchiveReader, fake: ArchiveReader | None) -> list[Selection]:
    """The slices of an arm of archives that `check_arm` has accepted: those of R, then the fakes."""
    turns = (*[AS_IT_IS] * arm.real, *FLIPS[: arm.flips])
    selected = [Selection(real, len(real), turns)] if arm.uses_real else []
    if arm.uses_fakes:
        assert fake is not None
        selected.append(Selection(fake, arm.fakes * len(real)))
    return selected


def check_arm(
    arm: Arm, real: ArchiveReader, fake: ArchiveReader | None, exclude: Iterable[str | os.PathLike] = ()
) -> None:
    """Raise UserError unless a U-Net may learn the arm from these archives. Reads no slice.

    fake: needed if the arm uses fakes. exclude: archives whose patients must not be learned from.
    """
    _check_together([real], exclude)
    refuse_fakes_as_real(real)
    if not arm.uses_fakes:
        return
    if fake is None:
        raise UserError(f"{arm} needs fakes: give their archive with --fake, as generate.py writes it")
    refuse_real_as_fakes(fake)
    _check_together([real, fake], exclude)
    needed = arm.fakes * len(real)
    if len(fake) < needed:
        raise UserError(
            f"{fake.path} holds {count(len(fake), 'slice')}, but {arm} needs {needed}: {arm.fakes} times the "
            f"{len(real)} of {real.path}. Generate as many with generate.py --like={real.path} --times={arm.fakes}"
        )


def refuse_validation(
    val: ArchiveReader, selected: Sequence[Selection], exclude: Iterable[str | os.PathLike] = ()
) -> None:
    """Raise UserError unless a U-Net that learns from the selected slices can be validated on an archive.

    Its patients must be in no test part of a split, not in `exclude`, and unknown to the U-Net, whether from slices or
    by a GAN.
    """
    advice = "give patients that are in neither training nor test"
    refuse_test_part(val)
    for path in exclude:
        if shared := shared_patients(val.info.known_patients, ArchiveReader(path).info.known_patients):
            raise UserError(f"--val {val.path} and {path} share the patients {name_some(shared)}; {advice}")
    for one in selected:
        require_same_kind(one.archive, val)
        own = {record.patient for record in one.records}
        if shared := shared_patients({*own, *one.archive.info.seen}, val.info.known_patients):
            raise UserError(
                f"--val {val.path}: the U-Net would learn from {describe_shared(shared, own)} ({one.archive.path}); "
                f"{advice}"
            )


def _check_together(archives: Sequence[ArchiveReader], exclude: Iterable[str | os.PathLike]) -> None:
    """Raise UserError unless a U-Net may learn from all of these archives together."""
    for other in archives[1:]:
        require_same_kind(archives[0], other)
    refuse_leaks(archives, exclude)
    refuse_twice(archives)


def refuse_fakes_as_real(archive: ArchiveReader) -> None:
    """Raise UserError if an archive of R has generated slices."""
    info = archive.info
    if num_fakes := sum(record.generated is not None for record in info.slices):
        raise UserError(
            f"{archive.path} was given as --real, but {num_fakes} of its {count(len(archive), 'slice')} "
            f"{'is' if num_fakes == 1 else 'are'} generated: give an archive of dataset_tool.py convert, and the fakes "
            "with --fake"
        )
    if info.seen:
        raise UserError(
            f"{archive.path} was given as --real, but holds generated slices, exported and converted again: give an "
            "archive of real slices only, and the fakes with --fake"
        )


def refuse_real_as_fakes(archive: ArchiveReader) -> None:
    """Raise UserError if an archive of fakes has real slices, as far as it tells."""
    num_real = sum(record.generated is None for record in archive.info.slices)
    # Fakes that were exported and converted again have no seed, but the patients that their generator saw are known.
    if num_real == 0 or (num_real == len(archive) and archive.info.seen):
        return
    raise UserError(
        f"{archive.path} was given as --fake, but {num_real} of its {count(len(archive), 'slice')} "
        f"{'has' if num_real == 1 else 'have'} no seed of a generator, so they are real: give an archive of "
        "generate.py, and the real slices with --real"
    )


# --- what a look into the slices tells --------------------------------------------------------------------------------


def classes_in(archive: ArchiveReader) -> np.ndarray:
    """Which lesion classes each slice has, bool [number of slices, number of classes]. Reads and checks all slices."""
    found = np.zeros([len(archive), len(archive.schema.classes)], bool)
    for i in tqdm(range(len(archive)), desc=f"reading {archive.path.name}", unit="slice", disable=None, leave=False):
        found[i] = classes_of(archive.schema.split(archive.read_checked(i))[1], archive.schema)
    return found


def classes_of(indices: np.ndarray, schema: Schema) -> np.ndarray:
    """Which lesion classes a slice has, bool [number of classes]. indices: uint8 [H, W]."""
    return np.bincount(indices.ravel(), minlength=schema.num_maps)[1:] > 0


def refuse_absent_classes(archive: ArchiveReader, found: np.ndarray) -> None:
    """Raise UserError if no slice of an archive has some lesion class. found: what `classes_in` gives."""
    names = np.array(archive.schema.class_names)
    if absent := names[~found.any(axis=0)].tolist():
        raise UserError(
            f"{archive.path}: none of its {count(len(archive), 'slice')} has the class {', '.join(absent)}, so nothing "
            f"can be said about it: take more patients, or convert without {'it' if len(absent) == 1 else 'them'}"
        )


def lesions_in(selected: Sequence[Selection], found: Sequence[np.ndarray]) -> np.ndarray:
    """Which of the selected slices have a lesion, bool, in the order of a data set of them.

    found: of every selection, what `classes_in` gives for its archive; more slices than it takes don't matter.
    """
    return np.concatenate(
        [np.tile(rows[: one.first].any(axis=1), len(one.turns)) for one, rows in zip(selected, found, strict=True)]
    )


def refuse_share(lesion_free: float | None, has_lesion: np.ndarray, selected: Sequence[Selection]) -> None:
    """Raise UserError if the share --lesion-free can't be drawn from these slices. has_lesion: from `lesions_in`."""
    num_free = int((~has_lesion).sum())
    names = " + ".join(str(one.archive.path) for one in selected)
    if lesion_free and not num_free:
        generated = all(one.archive.info.seen for one in selected)
        raise UserError(
            f"{names}: all {len(has_lesion)} slices have a lesion, but --lesion-free {lesion_free:g} asks for "
            f"slices without: {'train their GAN longer, or on' if generated else 'make'} an archive with convert "
            "--lesion-free, or leave the option out"
        )
    if lesion_free is not None and num_free == len(has_lesion):
        raise UserError(f"{names}: none of the {len(has_lesion)} slices has a lesion, so there is nothing to learn")

"""The viewer of a report: which slices of the test patients it shows, and how much of them fits into the page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnnlib.pages.data_uris import QUALITY, picture_uri
from dnnlib.text import count
from segmentation.page.pictures import labels_uri
from segmentation.predict import Examination, predict_slices
from segmentation.unet import load_unet
from slices.archive.reader import ArchiveReader
from slices.render import class_color
from torch_utils.distributed import default_device

_SLICES = (16, 12, 8)  # of each patient; less than the last only if lossy pictures are too large as well
_AT_ONCE = 16  # slices that a U-Net segments at a time
_SPREAD = 1.5  # an answer takes at most so many times the bytes of the truth, until it is known


@dataclass(frozen=True)
class Answer:
    """A U-Net whose answers are shown."""

    label: str  # title of its arm
    model: Path
    dice: Mapping[str, float]  # examination -> Dice of the target that the viewer names


@dataclass(frozen=True)
class ShownSlice:
    """One slice, as data URIs."""

    place: str  # such as "slice 34 of 155"
    contrasts: tuple[str, ...]
    labels: tuple[str, ...]  # the truth, then each answer


@dataclass(frozen=True)
class ShownPatient:
    """One examination."""

    name: str
    dice: tuple[str, ...]  # of each answer
    slices: tuple[ShownSlice, ...]

    @property
    def middle(self) -> int:
        """Number of the slice to begin with."""
        return len(self.slices) // 2


@dataclass(frozen=True)
class Viewer:
    """All that the viewer shows."""

    target: str  # of the Dice
    contrasts: tuple[str, ...]
    shown: int  # number of the contrast to begin with
    classes: tuple[tuple[str, str], ...]  # name and color
    answers: tuple[str, ...]  # labels
    resolution: int
    patients: tuple[ShownPatient, ...]
    notes: tuple[str, ...]  # what is left out, in sentences

    @property
    def tiles(self) -> tuple[str, ...]:
        """Titles of the pictures beside each other: the plain slice, then those with labels over it."""
        return ("slice", "truth", *self.answers)

    @property
    def columns(self) -> int:
        """How many of them stand beside each other, where there is room."""
        return len(self.tiles) if len(self.tiles) <= 5 else min(5, math.ceil(len(self.tiles) / 2))


@dataclass(frozen=True)
class _Choice:
    """How much is shown."""

    lossless: bool
    slices: int  # of each examination
    patients: int


@dataclass(frozen=True)
class _Volume:
    """Slices of an examination that may be shown: those with lesion, or all if there are none."""

    examination: Examination
    numbers: tuple[int, ...]  # in the archive, from the feet up
    has_lesion: bool

    def evenly(self, most: int) -> list[int]:
        """Up to so many of its slices, at even distances."""
        places = np.linspace(0, len(self.numbers) - 1, min(most, len(self.numbers)))
        if most == 1:
            places = np.array([(len(self.numbers) - 1) / 2])
        return [self.numbers[round(float(place))] for place in places]


def make_viewer(reader: ArchiveReader, answers: Sequence[Answer], target: str, room: int) -> Viewer | None:
    """Choose and encode slices of the test patients, with as many as fit into `room` bytes. None: not one fits."""
    volumes = _volumes(reader)
    grays, truths = _encoders(reader)

    def bytes_of(choice: _Choice) -> int:
        """About the size of a choice. Stops as soon as it is too large, or clearly going to be."""
        total, shown = 0, volumes[: choice.patients]
        for done, volume in enumerate(shown, start=1):
            for i in volume.evenly(choice.slices):
                total += sum(map(len, grays(i, choice.lossless))) + 100
                total += len(truths(i)) * round(1 + _SPREAD * len(answers))
            if total > room or (done > 2 and total * len(shown) > 1.5 * room * done):
                return room + 1
        return total

    for choice in _choices(len(volumes)):
        if bytes_of(choice) > room:
            continue
        patients = _patients(reader, volumes[: choice.patients], answers, choice, grays, truths)
        if _size(patients) <= room:
            return Viewer(
                target,
                reader.schema.contrasts,
                reader.schema.shown,
                tuple((name, "#" + bytes(class_color(i)).hex()) for i, name in enumerate(reader.schema.class_names, 1)),
                tuple(answer.label for answer in answers),
                reader.resolution,
                patients,
                tuple(_notes(volumes, choice)),
            )
    return None


def _choices(patients: int) -> Iterator[_Choice]:
    """From the best to the smallest: lossless, then lossy, then fewer slices, then fewer patients."""
    for lossless, slices in itertools.product((True, False), _SLICES):
        yield _Choice(lossless, slices, patients)
    for slices in range(_SLICES[-1] - 1, 0, -1):
        yield _Choice(False, slices, patients)
    for fewer in range(patients - 1, 0, -1):
        yield _Choice(False, 1, fewer)


def _notes(volumes: Sequence[_Volume], choice: _Choice) -> Iterator[str]:
    shown = volumes[: choice.patients]
    few = max(len(volume.evenly(choice.slices)) for volume in shown)
    most = max(len(volume.numbers) for volume in shown)
    if few < most:
        yield f"Up to {few} of up to {count(most, 'slice')} with lesion of each patient, at even distances."
    else:
        yield "All slices with lesion of each patient."
    yield "What an arm finds in slices without lesion is not seen here, but its Dice counts it."
    yield "Answers and Dice are of the first replicate alone; the tables are of all."
    if choice.patients < len(volumes):
        yield f"The first {choice.patients} of {len(volumes)} test patients: more do not fit into the page."
    if free := [volume.examination for volume in shown if not volume.has_lesion]:
        yield f"{count(len(free), 'patient')} without any lesion: slices of the whole volume."
    yield (
        "Gray levels are those of the archive, without loss."
        if choice.lossless
        else f"Gray levels are compressed with loss (WebP, quality {QUALITY}); the networks saw those of the archive."
    )


# --- slices -----------------------------------------------------------------------------------------------------------


def _volumes(reader: ArchiveReader) -> list[_Volume]:
    """The slices with lesion of every examination."""
    found = []
    for examination, numbers in reader.by_examination().items():
        ordered = sorted(numbers, key=lambda i: (reader.info.slices[i].index or 0, i))
        lesions = [i for i in ordered if reader.schema.split(reader.read(i))[1].any()]
        found.append(_Volume(examination, tuple(lesions or ordered), bool(lesions)))
    return found


_Grays = Callable[[int, bool], tuple[str, ...]]  # number of a slice, lossless -> its contrasts
_Truths = Callable[[int], str]  # number of a slice -> its true labels


def _encoders(reader: ArchiveReader) -> tuple[_Grays, _Truths]:
    """Functions that encode a slice, each once."""
    grays: dict[tuple[int, bool], tuple[str, ...]] = {}
    truths: dict[int, str] = {}

    def gray(i: int, lossless: bool) -> tuple[str, ...]:
        if (i, lossless) not in grays:
            contrasts, _ = reader.schema.split(reader.read(i))
            grays[i, lossless] = tuple(picture_uri(np.ascontiguousarray(one), lossless) for one in contrasts)
        return grays[i, lossless]

    def truth(i: int) -> str:
        if i not in truths:
            truths[i] = labels_uri(reader.schema.split(reader.read(i))[1], reader.schema)
        return truths[i]

    return gray, truth


def _patients(
    reader: ArchiveReader,
    volumes: Sequence[_Volume],
    answers: Sequence[Answer],
    choice: _Choice,
    grays: _Grays,
    truths: _Truths,
) -> tuple[ShownPatient, ...]:
    """The chosen slices with truth and answers."""
    numbers = [i for volume in volumes for i in volume.evenly(choice.slices)]
    predicted = [_predict(answer.model, reader, numbers) for answer in answers]
    several = len({volume.examination[0] for volume in volumes}) < len(volumes)
    patients = []
    for volume in volumes:
        patient, name = volume.examination
        told = name or patient
        slices = (
            ShownSlice(_place(reader, i), grays(i, choice.lossless), (truths(i), *(labels[i] for labels in predicted)))
            for i in volume.evenly(choice.slices)
        )
        dice = tuple(f"{answer.dice[told]:.3f}" if told in answer.dice else "" for answer in answers)
        patients.append(ShownPatient(told if several else patient, dice, tuple(slices)))
    return tuple(patients)


def _predict(model: Path, reader: ArchiveReader, numbers: Sequence[int]) -> dict[int, str]:
    """Number of a slice -> the labels that a U-Net gives it."""
    unet = load_unet(model, default_device())
    found: dict[int, str] = {}
    for start in range(0, len(numbers), _AT_ONCE):
        some = numbers[start : start + _AT_ONCE]
        contrasts, _ = reader.schema.split(np.stack([reader.read(i) for i in some]))  # [N, C, H, W]
        for i, classes in zip(some, predict_slices(unet, contrasts), strict=True):
            found[i] = labels_uri(classes, reader.schema)
    return found


def _place(reader: ArchiveReader, i: int) -> str:
    """Where a slice lies, in words."""
    record = reader.info.slices[i]
    if record.volume is None or record.index is None:
        return f"number {i + 1} of the archive"
    of = reader.info.volumes[record.volume].slices
    return f"slice {record.index + 1}" + (f" of {of}" if of is not None else "")


def _size(patients: Sequence[ShownPatient]) -> int:
    """Bytes of all pictures."""
    slices = [one for patient in patients for one in patient.slices]
    return sum(100 + sum(map(len, (*one.contrasts, *one.labels))) for one in slices)

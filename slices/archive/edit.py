"""Archives made from archives: merge, subset, split by patient. Slices are copied as packed bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dnnlib import config, files
from dnnlib.errors import UserError
from dnnlib.publish import Staged
from dnnlib.text import count, name_some
from slices.archive.compatible import refuse_twice
from slices.archive.format import TEST, TRAIN, SliceRecord, Volume
from slices.archive.history import describe_cutting, describe_making
from slices.archive.options import MergeOptions, SplitOptions, SubsetOptions
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.leaks import warn_of_alike
from slices.pixels import PixelSize
from slices.schema import Schema
from slices.split import SPLIT_FILE, draw_split, shuffle_names


@dataclass(frozen=True)
class Written:
    """An archive that was written."""

    path: Path
    num_slices: int
    num_patients: int
    doubts: tuple[str, ...] = ()  # what the user should look at

    def describe(self) -> str:
        told = f"written: {self.path}, {count(self.num_slices, 'slice')} of {count(self.num_patients, 'patient')}"
        return "\n".join([*self.doubts, told])


# --- merge ----------------------------------------------------------------------------------------------------------


def merge(archives: Sequence[Path], wanted: MergeOptions) -> Written:
    """Write the slices of all archives into one, one archive after the other.

    Class labels are matched by name and may get other numbers. Classes keep the titles of the first archive. Raises
    UserError for archives that differ in schema, in resolution or in the kind of their class labels. Also raises it for
    a slice that comes twice, a volume that they describe differently, and a real patient in both parts of a split.
    """
    dest = _archive_name(wanted.dest, wanted.force)
    if len(archives) < 2:
        raise UserError(f"{archives[0] if archives else 'nothing'}: expected two or more archives to merge")
    readers = [ArchiveReader(path) for path in archives]
    for other in readers[1:]:
        if difference := _difference(readers[0], other):
            raise UserError(f"{readers[0].path} and {other.path} can't be merged: {difference}")
    refuse_twice(readers)
    _refuse_other_volumes(readers)
    _refuse_two_sides(readers)

    # A dict keeps the order: names of the first archive, then new ones of the second, and so on. None without names.
    label_names = tuple(dict.fromkeys(name for reader in readers for name in reader.info.label_names or ())) or None
    remarks = {**_renumbered(readers, label_names or ()), **_other_titles(readers), **_other_pixels(readers)}
    first, made = readers[0], _made("merge", {}, readers) | ({"remarks": remarks} if remarks else {})
    seen = {patient for reader in readers for patient in reader.info.seen}
    with (
        files.folder_for(dest.parent),
        files.atomic_path(dest, wanted.force) as place,
        ArchiveWriter(place, first.schema, first.resolution, made, label_names, seen, _pixel(readers)) as writer,
        tqdm(desc="merging", total=sum(map(len, readers)), unit="slice") as bar,
    ):
        for reader in readers:
            for i in range(len(reader)):
                _copy(reader, i, writer)
                bar.update()
    patients = {patient for reader in readers for patient in reader.info.patients}
    said = [f"{remark}: {name_some(names)}" for remark, names in remarks.items()]
    return Written(dest, len(writer), len(patients), (*said, *warn_of_alike(patients, patients)))


def _pixel(readers: Sequence[ArchiveReader]) -> PixelSize | None:
    """Pixel size of the slices that generators learned from; None unless all such archives say it."""
    # Slices of no volume were generated: only their archives need this field.
    sizes = [reader.info.pixel for reader in readers if any(r.volume is None for r in reader.info.slices)]
    known = [size for size in sizes if size is not None]
    if not known or len(known) < len(sizes):
        return None
    # A size is (least, most): all ends of all ranges.
    return PixelSize.of(mm for size in known for mm in size)


def _renumbered(readers: Sequence[ArchiveReader], label_names: tuple[str, ...]) -> dict[str, list[str]]:
    """Remarks on archives whose class labels get other numbers."""
    remarks: dict[str, list[str]] = {}
    for reader in readers:
        names = reader.info.label_names or ()
        moved = [f"{name} from {i} to {n}" for i, name in enumerate(names) if (n := label_names.index(name)) != i]
        if moved:
            remarks.setdefault(f"class labels renumbered by name: {', '.join(moved)}", []).append(reader.path.name)
    return remarks


def _other_titles(readers: Sequence[ArchiveReader]) -> dict[str, list[str]]:
    """Remarks on archives that call their classes by other titles than the first archive, whose titles are kept."""
    remarks: dict[str, list[str]] = {}
    for reader in readers:
        for kept, lost in zip(readers[0].schema.classes, reader.schema.classes, strict=True):
            if kept.title != lost.title:
                remark = f'the title of {kept.name}: "{kept.title}" kept, "{lost.title}" lost'
                remarks.setdefault(remark, []).append(reader.path.name)
    return remarks


def _other_pixels(readers: Sequence[ArchiveReader]) -> dict[str, list[str]]:
    """Remarks on all archives if their pixels differ in size; else none."""
    known = [(reader, reader.info.pixels) for reader in readers if reader.info.pixels is not None]
    if all(pixels.is_like(known[0][1]) for _, pixels in known):
        return {}
    remarks: dict[str, list[str]] = {}
    for reader, pixels in known:
        words = f"pixels of {pixels.describe(digits=4)}, of other sizes elsewhere"
        remarks.setdefault(words, []).append(reader.path.name)
    return remarks


def _difference(first: ArchiveReader, other: ArchiveReader) -> str | None:
    """Describe the first difference that forbids merging two archives; None if there is none."""
    for what, a, b in (
        *_facts(first.schema, other.schema),
        ("the resolution", first.resolution, other.resolution),
        ("class labels", first.info.labels is not None, other.info.labels is not None),
        ("names of class labels", bool(first.info.label_names), bool(other.info.label_names)),
    ):
        if a != b:
            return f"{what}: {_say(a)} in the first, {_say(b)} in the other"
    return None


def _facts(a: Schema, b: Schema) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name of a fact, its value in schema a, its value in b), the most telling facts first."""
    yield "the contrasts", a.contrasts, b.contrasts
    yield "the classes", a.class_names, b.class_names
    for x, y in zip(a.classes, b.classes, strict=False):
        yield f"the label value of {x.name}", x.values, y.values
    yield "the regions", _regions(a), _regions(b)
    yield "the label values that are ignored", a.ignored, b.ignored


def _regions(schema: Schema) -> tuple[str, ...]:
    return tuple(f"{region.name} = {' + '.join(region.classes)}" for region in schema.regions)


def _say(value: Any) -> str:
    """A value in words, for messages about differences."""
    if value in (None, False, ()):
        return "none"
    if value is True:
        return "some"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _refuse_other_volumes(readers: Sequence[ArchiveReader]) -> None:
    """Raise UserError if two archives describe a volume of one name differently."""
    known: dict[str, tuple[Path, Volume]] = {}  # name -> the first archive that has the volume, and what it says
    for reader in readers:
        for name in {r.volume: None for r in reader.info.slices if r.volume is not None}:
            volume = reader.info.volumes[name]
            path, other = known.setdefault(name, (reader.path, volume))
            if volume != other:
                differing = [f.name for f in fields(Volume) if getattr(volume, f.name) != getattr(other, f.name)]
                raise UserError(
                    f"the volume {name} is not the same in {path} and in {reader.path} (other {', '.join(differing)}): "
                    "merge archives of one conversion"
                )


def _refuse_two_sides(readers: Sequence[ArchiveReader]) -> None:
    """Raise UserError if a real patient is in the train part of one archive and in the test part of another."""
    sides: dict[str, set[str]] = {TRAIN: set(), TEST: set()}
    for record in (record for reader in readers for record in reader.info.slices):
        if record.part is not None and record.generated is None:
            sides[record.part].add(record.patient)
    if both := sorted(sides[TRAIN] & sides[TEST]):
        raise UserError(
            f"{name_some(both)}: patients of {TRAIN} and of {TEST} at once; "
            "a patient belongs to one part of a split: merge archives of one split"
        )


# --- subset ---------------------------------------------------------------------------------------------------------


def subset(archive: Path, wanted: SubsetOptions) -> Written:
    """Write some slices, or all slices of some patients, drawn by chance. They keep their order.

    With the same seed, a larger subset contains a smaller one. Raises UserError if the archive has fewer than asked
    for.
    """
    dest = _archive_name(wanted.dest, wanted.force)
    reader = ArchiveReader(archive)
    if wanted.slices is not None:
        numbers, options = _draw_slices(reader, wanted.slices, wanted.seed), {"slices": wanted.slices}
    else:
        assert wanted.patients is not None
        numbers, options = _draw_patients(reader, wanted.patients, wanted.seed), {"patients": wanted.patients}

    made = _made("subset", options | {"seed": wanted.seed}, [reader])
    with (
        files.folder_for(dest.parent),
        files.atomic_path(dest, wanted.force) as place,
        _writer(place, reader, made) as writer,
    ):
        for i in tqdm(numbers, desc="copying", unit="slice"):
            _copy(reader, i, writer)
    return Written(dest, len(numbers), len({reader.info.slices[i].patient for i in numbers}))


def _draw_slices(reader: ArchiveReader, count: int, seed: int) -> list[int]:
    if count > len(reader):
        raise UserError(f"--slices {count}: {reader.path} has {len(reader)}")
    return sorted(np.random.RandomState(seed).permutation(len(reader))[:count].tolist())


def _draw_patients(reader: ArchiveReader, count: int, seed: int) -> list[int]:
    """Numbers of the slices of the first patients in the order of `shuffle_names`, as in `draw_split`."""
    names = sorted(set(reader.info.patients))
    if count > len(names):
        raise UserError(f"--patients {count}: {reader.path} has {len(names)}")
    chosen = set(shuffle_names(names, seed)[:count])
    return [i for i, record in enumerate(reader.info.slices) if record.patient in chosen]


# --- split ----------------------------------------------------------------------------------------------------------


def split(archive: Path, wanted: SplitOptions) -> list[Written]:
    """Divide an archive by patient into train.zip, test.zip and split.json in the folder `wanted.dest`.

    The files appear when all are complete, split.json last. Raises UserError for an archive of one patient, for test
    slices, which must stay test slices, and for generated slices among real ones, which belong to neither part.
    """
    dest = wanted.dest
    if dest.suffix.lower() == ".zip":
        raise UserError(f"--dest {dest}: expected a folder; {TRAIN}.zip, {TEST}.zip and {SPLIT_FILE} are written there")
    paths = {side: dest / f"{side}.zip" for side in (TRAIN, TEST)}
    for target in (*paths.values(), dest / SPLIT_FILE):
        files.refuse_existing(target, wanted.force)
    reader = ArchiveReader(archive)
    _refuse_to_split(reader)
    drawn = draw_split(reader.info.patients, wanted.test_fraction, wanted.seed)

    made = _made("split", {"test_fraction": wanted.test_fraction, "seed": wanted.seed}, [reader])
    # Patient -> TRAIN or TEST.
    sides = {patient: side for side, names in ((TRAIN, drawn.train), (TEST, drawn.test)) for patient in names}
    with (
        files.folder_for(dest),
        Staged(paths[TRAIN], wanted.force) as staged,
        contextlib.ExitStack() as opened,
    ):
        # The ExitStack closes both writers, also if the second can't be opened.
        writers = {}
        for side, path in paths.items():
            of_side = made | {"split": {"part": side, **config.to_json(drawn)}}
            writers[side] = opened.enter_context(_writer(staged.place(path), reader, of_side))
        for i, record in enumerate(tqdm(reader.info.slices, desc="splitting", unit="slice")):
            side = sides[record.patient]
            _copy(reader, i, writers[side], part=side)
        staged.write(dest / SPLIT_FILE, files.json_bytes(drawn))
    doubts = tuple(warn_of_alike(drawn.train, drawn.test))
    return [
        Written(path, len(writers[side]), len(names), doubts if side == TEST else ())
        for (side, path), names in zip(paths.items(), (drawn.train, drawn.test), strict=True)
    ]


def _refuse_to_split(reader: ArchiveReader) -> None:
    """Raise UserError for an archive that can't be divided, see `split`."""
    records = reader.info.slices
    if tests := [record for record in records if record.part == TEST]:
        raise UserError(
            f"{reader.path}: {len(tests)} of its {count(len(records), 'slice')} are test slices already and must "
            "remain test slices: split an archive without them"
        )
    generated = sum(record.generated is not None for record in records)
    if 0 < generated < len(records):
        raise UserError(
            f"{reader.path}: {generated} of its {len(records)} slices are generated, so no patients to test on: "
            "split the real ones, then merge"
        )
    if len(reader.info.patients) < 2:
        raise UserError(f"{reader.path}: one patient ({records[0].patient}) can't be split into {TRAIN} and {TEST}")


# --- shared ---------------------------------------------------------------------------------------------------------


def _archive_name(dest: Path, force: bool) -> Path:
    """The path to write, checked: a .zip, which doesn't exist unless `force`."""
    if dest.suffix.lower() != ".zip":
        raise UserError(f"--dest {dest}: expected a name that ends in .zip")
    return files.refuse_existing(dest, force)


def _writer(path: Path, like: ArchiveReader, made: dict[str, Any]) -> ArchiveWriter:
    """A writer with the schema, resolution, labels and generator's patients of the archive `like`."""
    info = like.info
    return ArchiveWriter(path, info.schema, info.resolution, made, info.label_names, info.seen, info.pixel)


def _copy(reader: ArchiveReader, i: int, writer: ArchiveWriter, part: str | None = None) -> None:
    """Append slice number i with its record, class label and volume. `part`, if given, replaces the record's part."""
    record = reader.info.slices[i]
    known = {f.name: getattr(record, f.name) for f in fields(SliceRecord) if f.name != "file"}
    label = reader.label(i)
    if label is not None and writer.label_names is not None:
        assert reader.info.label_names is not None
        # The writer may number class labels differently.
        label = writer.label_names.index(reader.info.label_names[label])
    writer.add_packed(reader.packed(i), label=label, **known | ({"part": part} if part else {}))
    if record.volume is not None:
        writer.volumes[record.volume] = reader.info.volumes[record.volume]


def _made(command: str, options: dict[str, Any], sources: Sequence[ArchiveReader]) -> dict[str, Any]:
    """How an archive came to be."""
    cutting = describe_cutting(reader.info.made for reader in sources)
    known = [reader.identify() for reader in sources]
    return describe_making(f"dataset_tool.py {command}", options, sources=known, **cutting)

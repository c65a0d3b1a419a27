"""From archives back to files: a NIfTI volume per case on the grid that it came from, or pictures of every slice."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dnnlib import files
from dnnlib.cli import Checked, option
from dnnlib.errors import UserError
from dnnlib.staged import Staged, recover
from dnnlib.text import count, format_table
from slices.archive.format import TEST, SliceRecord, Volume
from slices.archive.reader import ArchiveReader
from slices.convert.releases import MASK
from slices.geometry import VoxelGrid
from slices.intensity import undo_window
from slices.nifti import GENERATED, nifti_bytes
from slices.place import has_axes
from slices.provenance import CHANNELS_FILE, SLICES_FILE, seen_fields
from slices.render import class_color
from slices.schema import BRIGHTEST, DARKEST, OUTSIDE, Schema

NIFTI, PNG = FORMATS = ("nifti", "png")
LONGEST_AXIS, MOST_VOXELS = 32767, 1 << 28  # what NIfTI-1 can say; of all contrasts of a case, what fits into memory
# Where nothing is known of a slice's place, its file gets 1 mm voxels with axes to L, P, S, as pictures have them.
NOWHERE = np.diag((-1.0, -1.0, 1.0, 1.0))

Write = Callable[[str, bytes], None]  # (name below the destination, content)


@dataclass(frozen=True)
class ExportOptions(Checked):
    """What `dataset_tool.py export` can be told, besides the archive."""

    dest: Path = option("Folder to write; a new one, or an empty one.")
    form: str = option(
        "nifti: a volume per case; png: pictures of every slice, labels in color.", flag="--format", choices=FORMATS
    )
    force: bool = option("Write into a folder that is not empty; replaces files of the same names.", switch=True)


@dataclass(frozen=True)
class Folder:
    """One folder of an export: how many slices it got, and of how many its volume has.

    of: None for slices of no known volume; grid: whose voxels a NIfTI volume has, in words; None for pictures.
    """

    name: str
    slices: int
    of: int | None
    grid: str | None


@dataclass(frozen=True)
class Exported:
    """What an export wrote, its folders in the archive's order."""

    folders: tuple[Folder, ...]
    slices: int
    patients: int

    def describe(self, dest: Path) -> str:
        """A table of the volumes, how many slices lie beside them, and where all is."""
        words = []
        rows = [(f.name, f.slices, f.of, *([f.grid] if f.grid else [])) for f in self.folders if f.of is not None]
        if rows:
            words.append(format_table(("case", "slices", "of", "voxels")[: len(rows[0])], rows))
        if single := sum(folder.slices for folder in self.folders if folder.of is None):
            words.append(f"{count(single, 'slice')} of no known volume, each by itself; pixel size unknown")
        words.append(f"written: {dest}, {count(self.slices, 'slice')} of {count(self.patients, 'patient')}")
        return "\n\n".join(words)


def export_archive(archive: Path, dest: Path, form: str, force: bool = False) -> Exported:
    """Write the slices of an archive into the folder `dest`, as one of FORMATS.

    The files appear when all are complete; a folder that is there already must be empty unless `force` is given.
    Raises UserError for what can't be exported, before anything is written, and for a slice that can't be read.
    """
    assert form in FORMATS, form
    dest = Path(dest)
    _refuse_filled(dest, force)
    reader = ArchiveReader(archive)
    if reader.schema.num_maps and MASK in reader.schema.contrasts:
        raise UserError(f"{reader.path}: a contrast is called {MASK}, and so would the label map's file be")
    cases = _cases(reader)
    with _filled(dest, force) as write, tqdm(desc="exporting", total=len(reader), unit="slice") as bar:
        folders = (_write_volumes if form == NIFTI else _write_pictures)(reader, cases, write, bar)
    return Exported(tuple(folders), len(reader), len(reader.info.patients))


# --- which slices belong together -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    """The slices of one volume: their numbers in the archive, from the feet upwards."""

    name: str
    volume: Volume
    grid: VoxelGrid
    numbers: tuple[int, ...]


def _cases(reader: ArchiveReader) -> dict[str, _Case]:
    """Volume -> its slices. A UserError if one has no place in its volume, or if the volume makes no sense."""
    numbers: dict[str, dict[int, int]] = {}  # volume -> index -> number
    for i, record in enumerate(reader.info.slices):
        if not _is_cut(record):
            continue
        places = numbers.setdefault(record.volume, {})
        if record.index is None or record.index in places:
            what = "no index" if record.index is None else f"the index {record.index}, as another slice has"
            raise UserError(f"{reader.path}: {record.file} of the volume {record.volume} has {what}")
        places[record.index] = i
    cases = {}
    for name, places in numbers.items():
        volume = reader.info.volumes[name]
        try:
            _check(volume)
            grid = VoxelGrid.of(volume.shape, np.array(volume.affine), reader.resolution, volume.pixel)
            _check_size(grid, reader.schema)
        except UserError as error:
            raise UserError(f"{reader.path}: the volume {name}: {error}") from None
        if wrong := [index for index in places if index >= grid.num_slices]:
            raise UserError(
                f"{reader.path}: slice {wrong[0]} of the volume {name}, which has the slices 0 to {grid.num_slices - 1}"
            )
        cases[name] = _Case(name, volume, grid, tuple(places[index] for index in sorted(places)))
    return cases


def _is_cut(record: SliceRecord) -> bool:
    """Whether a slice was cut from a volume; one with a seed was generated, and has no place in any."""
    return record.volume is not None and record.seed is None


def _check(volume: Volume) -> None:
    """Refuse a description that an archive may hold but no file can have."""
    if np.abs(volume.affine).max() > np.finfo(np.float32).max or not has_axes(np.array(volume.affine)):
        raise UserError("its affine is not invertible, or too large for a file")
    if max(volume.shape) > LONGEST_AXIS:
        raise UserError(f"its shape is {list(volume.shape)}; expected at most {LONGEST_AXIS} voxels along each axis")


def _check_size(grid: VoxelGrid, schema: Schema) -> None:
    if math.prod((*grid.shape, schema.num_contrasts)) > MOST_VOXELS:
        raise UserError(
            f"{count(schema.num_contrasts, 'contrast')} of {'×'.join(map(str, grid.shape))} voxels are too many; "
            f"expected at most {MOST_VOXELS:,} in all"
        )


def _distinct(wanted: dict[int, str]) -> dict[int, str]:
    """Number of a slice -> its name; those that would share one get their numbers in the archive behind it."""
    count = Counter(wanted.values())
    return {i: name if count[name] == 1 else f"{name}-{i:08d}" for i, name in wanted.items()}


# --- NIfTI ----------------------------------------------------------------------------------------------------------


def _write_volumes(reader: ArchiveReader, cases: dict[str, _Case], write: Write, bar: tqdm) -> list[Folder]:
    """A folder per case with a volume per contrast, and one for every other slice; one case in memory at a time."""
    singles = {i: r.patient for i, r in enumerate(reader.info.slices) if not _is_cut(r)}
    distinct = _distinct(singles | {case.numbers[0]: name for name, case in cases.items()})
    names = {i: distinct[i] for i in singles}  # a case keeps its own
    (name, count), *_ = Counter([*names.values(), *cases]).most_common(1)
    if count > 1:
        raise UserError(f"{reader.path}: two folders would be called {name}; give the patients other names")
    archive, folders, done = reader.identify(), [], set()
    for i, record in enumerate(reader.info.slices):
        if i in names:
            folders.append(_write_single(reader, archive, i, names[i], write))
            bar.update()
        elif record.volume not in done:
            done.add(record.volume)
            case = cases[record.volume]
            folders.append(_write_case(reader, archive, case, write))
            bar.update(len(case.numbers))
    return folders


def _write_case(reader: ArchiveReader, archive: dict[str, str], case: _Case, write: Write) -> Folder:
    schema, grid, volume = reader.schema, case.grid, case.volume
    levels = np.zeros((schema.num_contrasts, *grid.shape), np.uint8)  # [C, L, P, S], OUTSIDE
    classes = np.zeros(grid.shape, np.uint8)  # [L, P, S]
    records = [reader.info.slices[i] for i in case.numbers]
    indices = [record.index for record in records]
    for i, index in zip(case.numbers, indices, strict=True):
        contrasts, labels = schema.split(reader.read_checked(i))
        for picture, target in zip((*contrasts, labels), (*levels, classes), strict=True):
            grid.put(picture, target, index)
    description = f"{grid.words}; {len(indices)} of {grid.num_slices} slices, others 0"
    for contrast, stored in zip(schema.contrasts, levels, strict=True):
        filled = undo_window(grid.to_file(stored), volume.windows[contrast])
        write(f"{case.name}/{case.name}_{contrast}.nii.gz", nifti_bytes(filled, grid.affine, description))
    if schema.num_maps:
        filled = schema.values_from_indices(grid.to_file(classes))
        write(f"{case.name}/{case.name}_{MASK}.nii.gz", nifti_bytes(filled, grid.affine, description))
    axis, planes = grid.planes(indices)
    content = {
        "case": case.name,
        "patient": volume.patient,
        "part": TEST if any(record.part == TEST for record in records) else records[0].part,
        "archive": archive,
        **seen_fields(reader.info, generated=False),
        "grid": grid.words,
        "slices": {"present": indices, "of": grid.num_slices, "axis": axis, "planes": planes},
        "pixel": volume.pixel,
        "windows": volume.windows,
        "schema": schema,
    }
    write(f"{case.name}/{SLICES_FILE}", files.json_bytes(content))
    return Folder(case.name, len(indices), grid.num_slices, grid.words)


def _write_single(reader: ArchiveReader, archive: dict[str, str], i: int, name: str, write: Write) -> Folder:
    """A slice of no known volume: files of one slice each, grey levels as stored."""
    schema, record = reader.schema, reader.info.slices[i]
    contrasts, classes = schema.split(reader.read_checked(i))
    origin = GENERATED if record.seed is not None else "of an unknown volume"
    description = f"{origin}; pixel size unknown"
    for contrast, picture in zip(schema.contrasts, contrasts, strict=True):
        filled = picture.T[..., None].astype(np.float32)  # [L, P, 1]
        write(f"{name}/{name}_{contrast}.nii.gz", nifti_bytes(filled, NOWHERE, description))
    if schema.num_maps:
        filled = schema.values_from_indices(classes.T[..., None])
        write(f"{name}/{name}_{MASK}.nii.gz", nifti_bytes(filled, NOWHERE, description))
    content = {
        "patient": record.patient,
        "part": record.part,
        "archive": archive,
        "member": record.file,
        "index": record.index,
        "seed": record.seed,
        "snapshot": record.snapshot,
        **seen_fields(reader.info, generated=record.seed is not None),
        "grid": description,
        "schema": schema,
    }
    write(f"{name}/{SLICES_FILE}", files.json_bytes(content))
    return Folder(name, 1, None, description)


# --- pictures -------------------------------------------------------------------------------------------------------


def _write_pictures(reader: ArchiveReader, cases: dict[str, _Case], write: Write, bar: tqdm) -> list[Folder]:
    """A folder per case, or per patient for slices of no known volume, with the pictures of each slice."""
    schema, info = reader.schema, reader.info
    places = {i: f"{r.volume if _is_cut(r) else r.patient}/{_stem(i, r)}" for i, r in enumerate(info.slices)}
    places = _distinct(places)
    for i in range(len(reader)):
        contrasts, classes = schema.split(reader.read_checked(i))
        for contrast, picture in zip(schema.contrasts, contrasts, strict=True):
            write(f"{places[i]}_{contrast}.png", _png_bytes(Image.fromarray(np.ascontiguousarray(picture))))
        if schema.num_maps:
            write(f"{places[i]}_{MASK}.png", _png_bytes(_palette_image(classes, schema)))
        bar.update()
    write(CHANNELS_FILE, files.json_bytes(_channels(reader, cases)))
    counts = Counter(place.rpartition("/")[0] for place in places.values())
    return [
        Folder(name, count, cases[name].grid.num_slices if name in cases else None, None)
        for name, count in counts.items()
    ]


def _stem(i: int, record: SliceRecord) -> str:
    if record.seed is not None:
        return f"seed{record.seed:04d}"
    return f"{record.index:03d}" if record.index is not None else f"slice{i:08d}"


def _palette_image(classes: np.ndarray, schema: Schema) -> Image.Image:
    """Class indices [H, W] as a picture whose values they are, shown in the colours of the panels."""
    image = Image.fromarray(np.ascontiguousarray(classes))
    colours = [value for index in range(schema.num_maps) for value in _colour(index)]
    # All 256: Pillow packs values of fewer colours into 2 or 4 bits, which not every program unpacks.
    image.putpalette(colours + [0] * (3 * 256 - len(colours)))
    return image


def _colour(index: int) -> tuple[int, int, int]:
    return class_color(index) if index else (0, 0, 0)


def _png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _channels(reader: ArchiveReader, cases: dict[str, _Case]) -> dict[str, Any]:
    """What the values of the pictures mean."""
    schema = reader.schema
    classes = [(0, "background", 0), *((i, c.name, c.value) for i, c in enumerate(schema.classes, start=1))]
    held_out = sorted({record.patient for record in reader.info.slices if record.part == TEST})
    return {
        "archive": reader.identify(),
        **seen_fields(reader.info, generated=any(record.seed is not None for record in reader.info.slices)),
        **({"held_out": held_out} if held_out else {}),
        "contrasts": f"{OUTSIDE} outside the head; {DARKEST} to {BRIGHTEST} are the intensities of the volume's window",
        "labels": [
            {"index": index, "name": name, "value": value, "colour": _colour(index)}
            for index, name, value in (classes if schema.num_maps else ())
        ],
        "schema": schema,
        "volumes": {
            name: {"patient": case.volume.patient, "pixel": case.volume.pixel, "windows": case.volume.windows}
            for name, case in cases.items()
        },
    }


# --- files ----------------------------------------------------------------------------------------------------------


def _refuse_filled(dest: Path, force: bool) -> None:
    """Raise UserError unless files can be made in `dest` without any of the user's being lost."""
    if os.path.lexists(dest) and not dest.is_dir():
        raise UserError(f"{dest} is a file; an export is a folder: choose another name")
    recover(dest, within=dest)
    recover(dest)
    if dest.is_dir() and any(dest.iterdir()) and not force:
        raise UserError(
            f"{dest} is not empty: choose another folder, or pass --force to replace files of the same names"
        )


@contextlib.contextmanager
def _filled(dest: Path, force: bool) -> Iterator[Write]:
    """Yield what writes files below `dest`. All of them appear there, or none."""
    files.make_folder(dest.parent)
    with Staged(dest, force, within=dest if dest.is_dir() else None, joins=True) as staged:
        folder = staged.place(dest)
        folder.mkdir()

        def write(name: str, content: bytes) -> None:
            files.make_folder((folder / name).parent)
            (folder / name).write_bytes(content)

        yield write

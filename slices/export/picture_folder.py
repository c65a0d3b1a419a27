"""Export as pictures: PNG files of every slice, in a folder for each volume or patient."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dnnlib import files
from slices.archive.format import TEST, SliceRecord
from slices.archive.reader import ArchiveReader
from slices.convert.releases import MASK
from slices.export.stacking import Folder, VolumeSlices, distinct
from slices.provenance import CHANNELS_FILE, seen_fields
from slices.render import RGB, class_color
from slices.schema import BRIGHTEST, DARKEST, OUTSIDE, Schema


def write_picture_folder(
    reader: ArchiveReader, volumes: dict[str, VolumeSlices], write: Callable[[str, bytes], None], bar: tqdm
) -> list[Folder]:
    """Write all slices of an archive, and what their values mean. Returns the folders in the archive's order."""
    schema = reader.schema
    # Number of a slice -> folder/stem of its pictures.
    places = distinct({i: f"{_folder(r)}/{_stem(i, r)}" for i, r in enumerate(reader.info.slices)})
    for i in range(len(reader)):
        contrasts, classes = schema.split(reader.read_checked(i))
        for contrast, picture in zip(schema.contrasts, contrasts, strict=True):
            write(f"{places[i]}_{contrast}.png", _png_bytes(Image.fromarray(np.ascontiguousarray(picture))))
        if schema.num_maps:
            write(f"{places[i]}_{MASK}.png", _png_bytes(_palette_image(classes, schema)))
        bar.update()
    write(CHANNELS_FILE, files.json_bytes(_describe_channels(reader, volumes)))
    counts = Counter(place.rpartition("/")[0] for place in places.values())
    in_volume = {name: volume.grid.num_slices for name, volume in volumes.items()}
    return [Folder(name, num_slices, in_volume.get(name), None) for name, num_slices in counts.items()]


def _folder(record: SliceRecord) -> str:
    """The folder of a slice: named after its volume, or else after its patient."""
    return record.patient if record.cut is None else record.cut.volume


def _stem(i: int, record: SliceRecord) -> str:
    """The beginning of the names of a slice's pictures."""
    if record.generated is not None:
        return f"seed{record.generated.seed:04d}"
    return f"{record.index:03d}" if record.index is not None else f"slice{i:08d}"


def _palette_image(classes: np.ndarray, schema: Schema) -> Image.Image:
    """A picture of class indices [H, W]: its values are the indices, its palette has the colors of the panels."""
    image = Image.fromarray(np.ascontiguousarray(classes))
    # A flat list of red, green and blue, as Pillow wants it.
    colors = [value for index in range(schema.num_maps) for value in _color(index)]
    # Padded to 256 colors: with fewer, Pillow packs values into 2 or 4 bits, which some programs can't read.
    image.putpalette(colors + [0] * (3 * 256 - len(colors)))
    return image


def _color(index: int) -> RGB:
    """Color of a class index; the background is black."""
    return class_color(index) if index else (0, 0, 0)


def _png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _describe_channels(reader: ArchiveReader, volumes: dict[str, VolumeSlices]) -> dict[str, Any]:
    """Content of channels.json: what the values of the pictures mean, and provenance."""
    schema, records = reader.schema, reader.info.slices
    classes = [(0, "background", 0), *((i, c.name, c.value) for i, c in enumerate(schema.classes, start=1))]
    held_out = sorted({record.patient for record in records if record.part == TEST})
    return {
        "archive": reader.identify(),
        **seen_fields(reader.info, generated=any(record.generated is not None for record in records)),
        **({"held_out": held_out} if held_out else {}),
        "contrasts": f"{OUTSIDE} outside the head; {DARKEST} to {BRIGHTEST} are the intensities of the volume's window",
        "labels": [
            {"index": index, "name": name, "value": value, "colour": _color(index)}
            for index, name, value in (classes if schema.num_maps else ())
        ],
        "schema": schema,
        "volumes": {
            name: {"patient": one.volume.patient, "pixel": one.volume.pixel, "windows": one.volume.windows}
            for name, one in volumes.items()
        },
    }

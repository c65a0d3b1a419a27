"""Description of an archive in words: its content and history. Also chooses slices worth showing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from dnnlib.text import count, format_table
from slices.archive.format import ArchiveInfo
from slices.archive.reader import ArchiveReader
from slices.class_areas import ClassAreas
from slices.pixels import PixelSize
from slices.schema import Schema


@dataclass(frozen=True)
class Inspection:
    """An archive, after every slice was checked."""

    reader: ArchiveReader
    areas: ClassAreas
    sizes: list[tuple[int, int]]  # (pixels of lesions, pixels of the head) of each slice

    def describe(self) -> str:
        """The content and history of the archive, with tables of class areas."""
        name, num_patients = self.reader.path.name, len(self.reader.info.patients)
        return f"{describe_archive(self.reader)}\n\n{describe_areas({name: (num_patients, self.areas)})}"

    def worth_showing(self, most: int) -> np.ndarray:
        """Up to `most` slices with large lesions, uint8 [N, C + K, H, W]."""
        chosen = choose_slices(self.reader.by_patient(), self.sizes, most)
        return np.stack([self.reader.read(i) for i in chosen])


def inspect_archive(reader: ArchiveReader) -> Inspection:
    """Read and check every slice. Raises UserError for the first slice that is damaged or doesn't fit."""
    schema, sizes = reader.schema, []
    areas = ClassAreas.none(schema)
    for i in tqdm(range(len(reader)), desc="checking", unit="slice", leave=False):
        contrasts, classes = schema.split(reader.read_checked(i))
        # [H, W] -> [1, H, W]
        areas += ClassAreas.of(classes[None], schema)
        sizes.append((int(np.count_nonzero(classes)), int(np.count_nonzero(contrasts[0]))))
    return Inspection(reader, areas, sizes)


def choose_slices(by_patient: dict[str, list[int]], sizes: Sequence[tuple[int, int]], most: int) -> list[int]:
    """Numbers of up to `most` slices: the largest of each patient, from patients spread evenly over the archive.

    With fewer patients than `most`, each gives several slices, out of the larger half of its slices. sizes: of every
    slice, see `Inspection`.
    """
    patients = list(by_patient)
    chosen = [patients[round(i)] for i in np.linspace(0, len(patients) - 1, min(most, len(patients)))]
    each = math.ceil(most / len(chosen))
    numbers = []
    for patient in chosen:
        ranked = sorted(by_patient[patient], key=lambda i: sizes[i], reverse=True)
        half = ranked[: max(each, math.ceil(len(ranked) / 2))]
        # Spread evenly over the half, so that they are not all alike.
        picks = np.linspace(0, len(half) - 1, min(each, len(half))).round().astype(int)
        numbers += [half[i] for i in picks]
    return numbers[:most]


def describe_archive(reader: ArchiveReader) -> str:
    """The content of dataset.json in words, one fact per line."""
    info, schema = reader.info, reader.schema
    lines = [
        f"{reader.path}: {count(len(reader), 'slice')} of {info.resolution}×{info.resolution} pixels, "
        f"{count(schema.num_contrasts, 'contrast')} and {count(schema.num_maps, 'label map')}; all are readable",
        *_lines_of_schema(schema),
        *_lines_of_labels(info),
        *_lines_of_origin(info),
    ]
    parts = Counter(record.part for record in info.slices if record.part is not None)
    if parts:
        lines.append("part of the split: " + ", ".join(f"{count(n, 'slice')} {part}" for part, n in parts.items()))
    if pixels := info.pixels:
        lines.append(describe_pixels(pixels, info.resolution))
    return "\n".join([*lines, *_lines_of_making(info.made)])


def _lines_of_schema(schema: Schema) -> Iterator[str]:
    yield f"contrasts: {', '.join(schema.contrasts)}"
    for one in schema.classes:
        title = f"{one.title}, " if one.title not in ("", one.name) else ""
        yield f"class {one.name}: {title}{_describe_values(one.values)} in NIfTI files"
    if schema.ignored:
        yield f"ignored, as if it were background: {_describe_values(schema.ignored)} in NIfTI files"
    for region in schema.regions:
        yield f"region {region.name}: {' + '.join(region.classes)}"


def _describe_values(values: Sequence[int]) -> str:
    return f"value{'s' * (len(values) > 1)} {', '.join(map(str, values))}"


def _lines_of_labels(info: ArchiveInfo) -> Iterator[str]:
    if info.labels is not None:
        names = dict(enumerate(info.label_names or ()))
        counts = Counter(label for _, label in info.labels)
        told = (f"{names.get(i, i)} {count(counts[i], 'slice')}" for i in sorted({*names, *counts}))
        yield "class labels: " + ", ".join(told)


def _lines_of_origin(info: ArchiveInfo) -> Iterator[str]:
    """Whose the slices are: real patients, or a generator, with the patients that it learned from."""
    generated = [record.generated for record in info.slices if record.generated is not None]
    if generated:
        seeds = [one.seed for one in generated]
        snapshots = ", ".join(sorted({(one.snapshot or "unnamed")[:12] for one in generated}))
        yield f"generated: {count(len(seeds), 'slice')}, seeds {min(seeds)} to {max(seeds)}, snapshot {snapshots}"
    if info.seen and not generated:
        yield "generated slices are among these, exported and converted again"
    if generated or info.seen:
        yield f"  their generator learned from {count(len(info.seen), 'patient')}: {first_names(info.seen)}"
    if real := dict.fromkeys(record.patient for record in info.slices if record.generated is None):
        kind = "real" if generated or not info.seen else "real or generated"
        yield f"{kind}: {count(len(real), 'patient')}: {first_names(real)}"


def _lines_of_making(made: Mapping[str, Any]) -> Iterator[str]:
    """The history of the archive. Other programs may have written anything into `made`, so nothing is assumed."""
    if not made:
        return
    yield f"made by: {made.get('command', 'unknown')}, version {made.get('version', 'unknown')}"
    for name, value in _object(made.get("options")).items():
        yield f"  {name}: {_describe_option(value)}"
    if split := _object(made.get("split")):
        sizes = ", ".join(f"{len(names)} {side}" for side, names in split.items() if isinstance(names, list))
        yield f"  split: this is {split.get('part')} of {sizes} patients"
    sources = made.get("sources")
    for source in sources if isinstance(sources, list) else ():
        if isinstance(source, dict):
            yield f"  source: {source.get('name')}"
    skipped = _object(made.get("skipped"))
    for why, n in _object(skipped.get("files")).items():
        yield f"  left out: {why}: {count(n, 'file')}"
    for what, reasons in (("left out", skipped.get("patients")), ("note", made.get("remarks"))):
        for why, names in _object(reasons).items():
            if isinstance(names, list):
                yield f"  {what}: {why}: {first_names(names)}"


def _object(value: Any) -> dict[str, Any]:
    """The value itself if it is a JSON object, else an empty object."""
    return value if isinstance(value, dict) else {}


def _describe_option(value: object) -> str:
    return ", ".join(f"{key}={name}" for key, name in value.items()) if isinstance(value, dict) else str(value)


# --- also for the report of a conversion ------------------------------------------------------------------------------


def describe_areas(archives: Mapping[str, tuple[int, ClassAreas]]) -> str:
    """Tables of slices and class areas. archives: name -> (number of patients, areas)."""
    rows: list[tuple[object, ...]] = [(name, n, areas.num_slices) for name, (n, areas) in archives.items()]
    tables = [format_table(("archive", "patients", "slices"), rows)]
    # One row for each archive and class.
    rows = [
        (
            f"{name}  {class_name}",
            areas.class_slices[class_name],
            f"{pixels / max(1, areas.class_slices[class_name]):.0f}",
            f"{100 * pixels / areas.num_pixels:.3f} %",
        )
        for name, (_, areas) in archives.items()
        for class_name, pixels in areas.class_pixels.items()
    ]
    rows += [
        (f"{name}  none", areas.num_lesion_free, "", "") for name, (_, areas) in archives.items() if areas.class_pixels
    ]
    if rows:
        tables.append(format_table(("class", "slices with it", "mean pixels in those", "of all pixels"), rows))
    return "\n\n".join(tables)


def describe_pixels(pixels: PixelSize, resolution: int) -> str:
    """The size of pixels, and the edge of the largest slices in mm."""
    return f"{pixels} pixels, {pixels.most * resolution:.4g} mm across"


def first_names(names: Collection[str], most: int = 3) -> str:
    """The first names, and an ellipsis if there are more."""
    return ", ".join(str(name) for name in list(names)[:most]) + (", …" if len(names) > most else "")


def remarks_on(info: ArchiveInfo) -> list[str]:
    """What an archive lacks, according to `made`. Other programs may have written anything there."""
    remarks = []
    split, voxels = _object(info.made.get("split")), _object(info.made.get("voxels"))
    part = split.get("part")
    names = split.get(part) if isinstance(part, str) else None
    wanted = {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
    if missing := wanted.difference(info.patients):
        remarks.append(f"{len(missing)} of the {len(wanted)} patients in this part of the split have no slice here")
    for what, n in voxels.items():
        if type(n) is int and what.isprintable():  # not isinstance, which accepts True
            remarks.append(f"{what}: {count(n, 'voxel')}")
    return remarks

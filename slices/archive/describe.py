"""What an archive holds and how it was made, in words, and the slices that are worth showing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from dnnlib.text import count
from slices.archive.reader import ArchiveReader


def importance(stored: np.ndarray, reader: ArchiveReader) -> tuple[int, int]:
    """Areas of the lesions and of the head: the order in which slices are worth showing."""
    contrasts, classes = reader.schema.split(stored)
    return int(np.count_nonzero(classes)), int(np.count_nonzero(contrasts[0]))


def choose_slices(by_patient: dict[str, list[int]], sizes: Sequence[tuple[int, int]], most: int) -> list[int]:
    """Numbers of up to `most` slices, the largest of each patient, from patients spread evenly over the archive.

    With fewer patients than places, each shows more, out of the larger half of its slices.
    """
    patients = list(by_patient)
    chosen = [patients[round(i)] for i in np.linspace(0, len(patients) - 1, min(most, len(patients)))]
    each = math.ceil(most / len(chosen))
    numbers = []
    for patient in chosen:
        ranked = sorted(by_patient[patient], key=lambda i: sizes[i], reverse=True)
        half = ranked[: max(each, math.ceil(len(ranked) / 2))]
        picks = np.linspace(0, len(half) - 1, min(each, len(half))).round().astype(int)
        numbers += [half[i] for i in picks]
    return numbers[:most]


def describe_archive(reader: ArchiveReader) -> str:
    info, schema = reader.info, reader.schema
    lines = [
        f"{reader.path}: {count(len(reader), 'slice')} of {info.resolution}×{info.resolution} pixels, "
        f"{count(schema.num_contrasts, 'contrast')} and {count(schema.num_maps, 'label map')}; all are readable",
        f"contrasts: {', '.join(schema.contrasts)}",
    ]
    titles = [f"{c.title}, " if c.title not in ("", c.name) else "" for c in schema.classes]
    lines += [
        f"class {c.name}: {title}{_describe_values(c.values)} in NIfTI files"
        for c, title in zip(schema.classes, titles, strict=True)
    ]
    if schema.ignored:
        lines.append(f"ignored, as if it were background: {_describe_values(schema.ignored)} in NIfTI files")
    lines += [f"region {region.name}: {' + '.join(region.classes)}" for region in schema.regions]
    if info.labels is not None:
        names = dict(enumerate(info.label_names or ()))
        counts = Counter(label for _, label in info.labels)
        told = (f"{names.get(i, i)} {count(counts[i], 'slice')}" for i in sorted({*names, *counts}))
        lines.append("class labels: " + ", ".join(told))
    if seeds := [record.seed for record in info.slices if record.seed is not None]:
        fakes = [record for record in info.slices if record.seed is not None]
        snapshots = ", ".join(sorted({(record.snapshot or "unnamed")[:12] for record in fakes}))
        lines.append(
            f"generated: {count(len(seeds), 'slice')}, seeds {min(seeds)} to {max(seeds)}, snapshot {snapshots}"
        )
    if info.seen and not seeds:
        lines.append("generated slices are among these, exported and converted again")
    if seeds or info.seen:
        lines.append(f"  their generator learned from {count(len(info.seen), 'patient')}: {shorten(info.seen)}")
    real = dict.fromkeys(record.patient for record in info.slices if record.seed is None)
    if real:
        kind = "real" if seeds or not info.seen else "real or generated"
        lines.append(f"{kind}: {count(len(real), 'patient')}: {shorten(real)}")
    parts = Counter(record.part for record in info.slices if record.part is not None)
    if parts:
        lines.append("part of the split: " + ", ".join(f"{count(n, 'slice')} {part}" for part, n in parts.items()))
    if pixels := {*(volume.pixel for volume in info.volumes.values()), *(info.pixel or ())}:
        lines.append(describe_pixels(pixels, info.resolution))
    lines += _describe_made(info.made)
    return "\n".join(lines)


def _describe_values(values: Sequence[int]) -> str:
    return f"value{'s' * (len(values) > 1)} {', '.join(map(str, values))}"


def _describe_made(made: dict) -> list[str]:
    """How the archive came to be; archives of other programs may say anything, or nothing."""
    if not made:
        return []
    lines = [f"made by: {made.get('command', 'unknown')}, version {made.get('version', 'unknown')}"]
    if isinstance(options := made.get("options"), dict):
        lines += [f"  {name}: {_describe_option(value)}" for name, value in options.items()]
    if isinstance(split := made.get("split"), dict):
        sizes = ", ".join(f"{len(names)} {side}" for side, names in split.items() if isinstance(names, list))
        lines.append(f"  split: this is {split.get('part')} of {sizes} patients")
    if isinstance(sources := made.get("sources"), list):
        lines += [f"  source: {one.get('name')}" for one in sources if isinstance(one, dict)]
    skipped = made.get("skipped") if isinstance(made.get("skipped"), dict) else {}
    if isinstance(files_left := skipped.get("files"), dict):
        lines += [f"  left out: {why}: {count(n, 'file')}" for why, n in files_left.items()]
    for what, reasons in (("left out", skipped.get("patients")), ("note", made.get("remarks"))):
        if isinstance(reasons, dict):
            lines += [f"  {what}: {why}: {shorten(names)}" for why, names in reasons.items() if isinstance(names, list)]
    return lines


def _describe_option(value: object) -> str:
    return ", ".join(f"{key}={name}" for key, name in value.items()) if isinstance(value, dict) else str(value)


def describe_pixels(pixels: set[float], resolution: int) -> str:
    """The edge of pixels in mm, and of the picture; of several volumes the least and the most."""
    sizes = sorted({f"{mm:.3g}": mm for mm in sorted(pixels)}.values())
    return " to ".join(f"{mm:.3g}" for mm in sizes[:: max(1, len(sizes) - 1)]) + (
        f" mm pixels, {sizes[-1] * resolution:.4g} mm across"
    )


def shorten(names: Sequence[str] | dict[str, None], most: int = 3) -> str:
    return ", ".join(str(name) for name in list(names)[:most]) + (", …" if len(names) > most else "")

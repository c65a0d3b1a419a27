"""Compatibility of archives that are used together: of one kind, and with no slice twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dnnlib.errors import UserError
from slices.archive.format import SliceRecord
from slices.archive.reader import ArchiveReader


def require_same_kind(first: ArchiveReader, other: ArchiveReader) -> None:
    """Raise UserError unless two archives have the same channels and resolution."""
    if first.schema.channels != other.schema.channels:
        raise UserError(
            f"{other.path} has the channels {other.schema.describe_channels()}, but {first.path} has "
            f"{first.schema.describe_channels()}; use archives of one schema"
        )
    if first.resolution != other.resolution:
        raise UserError(
            f"{other.path} has {other.resolution}×{other.resolution} pixels, but {first.path} has "
            f"{first.resolution}×{first.resolution}; convert both at one --resolution"
        )


def refuse_twice(readers: Sequence[ArchiveReader]) -> None:
    """Raise UserError if two slices have the same place in a volume, or the same seed, class and snapshot.

    --trunc and --noise-mode don't count: slices of one seed at two settings are alike, not independent examples.
    """
    first: dict[tuple, Path] = {}  # identity of a slice -> the first archive that holds it
    for reader in readers:
        for i, record in enumerate(reader.info.slices):
            if (identity := _identity(record, reader.label_name(i))) is None:
                continue
            if identity in first:
                name = _name(record, reader.label_name(i))
                raise UserError(
                    f"{name} is in {first[identity]} and in {reader.path}; together they would hold it "
                    f"twice: leave one of them out{'' if record.generated is None else ', or generate other seeds'}"
                    if first[identity] != reader.path
                    else f"{name} is in {reader.path} twice: give each archive once"
                )
            first[identity] = reader.path


def _identity(record: SliceRecord, label: str | None) -> tuple | None:
    """A key that is equal for two records of one slice; None if a record doesn't say which slice it is."""
    if made := record.generated:
        return "generated", made.seed, made.snapshot or record.patient, label
    if record.index is not None:
        return "cut", record.patient, record.volume, record.index
    return None


def _name(record: SliceRecord, label: str | None) -> str:
    """What messages call a slice."""
    if made := record.generated:
        of_class = "" if label is None else f"class {label} of "
        return f"seed {made.seed} of {of_class}the snapshot {(made.snapshot or 'unnamed')[:12]} ({record.patient})"
    volume = "" if record.volume in (None, record.patient) else f" of the volume {record.volume}"
    return f"slice {record.index}{volume} of the patient {record.patient}"

"""Writer of archives of joint slices."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib import config
from dnnlib.config import shorten
from dnnlib.errors import UserError
from slices.archive.format import FORMAT, INDEX, VERSION, ArchiveInfo, SliceRecord, Volume, pack_slice
from slices.archive.zips import Packed, ZipWriter, pack
from slices.schema import Schema, is_plain_name


class ArchiveWriter:
    """Write an archive into a file, which is complete when the `with` block ends without an exception.

    The file grows under the given path. For an archive that appears only when it is complete, give a path from
    `Staged.place` or `atomic_path`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        schema: Schema,
        resolution: int,
        made: dict[str, Any],  # history of the archive, from `describe_making`; stored as it is
        label_names: tuple[str, ...] | None = None,  # of the class labels, if slices have any
        seen: Iterable[str] = (),  # for generated slices: the real patients that their generator learned from
        pixel: tuple[float, float] | None = None,  # see ArchiveInfo
    ) -> None:
        self.path, self.schema, self.resolution = Path(path), schema, resolution
        self.made, self.label_names, self.seen = made, label_names, tuple(sorted(seen))
        self.pixel = pixel
        self.volumes: dict[str, Volume] = {}
        self._records: list[SliceRecord] = []
        self._labels: list[int | None] = []

    def __enter__(self) -> ArchiveWriter:
        _require_names(*self.seen, *(self.label_names or ()))
        self._zip = ZipWriter(self.path)
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._zip.abandon()  # does nothing after `_finish`

    def __len__(self) -> int:
        return len(self._records)

    def add(self, stored: np.ndarray, *, patient: str, label: int | None = None, **where) -> None:
        """Append one stored joint slice, uint8 [C + K, resolution, resolution].

        patient, where: fields of its SliceRecord. label: its class label.
        """
        expected = (self.schema.num_channels, self.resolution, self.resolution)
        assert stored.shape == expected, (stored.shape, expected)
        self.add_packed(pack_slice(stored), patient=patient, label=label, **where)

    def add_packed(self, member: Packed, *, patient: str, label: int | None = None, **where) -> None:
        """Append a slice from `pack_slice` or from `ArchiveReader.packed`."""
        _require_names(patient, where.get("volume") or patient)
        n = len(self._records)
        # Folders of 1,000, because some programs are slow with large folders.
        name = f"slices/{n // 1000:05d}/{n:08d}.npy"
        self._zip.add(name, member)
        self._records.append(SliceRecord(file=name, patient=patient, **where))
        self._labels.append(label)

    def _finish(self) -> None:
        """Write the index and the zip's directory."""
        if not self._records:
            raise ValueError("an archive holds at least one slice")
        self._zip.add(INDEX, pack(json.dumps(config.to_json(self._info())).encode()))
        self._zip.close()

    def _info(self) -> ArchiveInfo:
        pairs = zip(self._records, self._labels, strict=True)
        labels = tuple((record.file, label) for record, label in pairs if label is not None)
        assert len(labels) in (0, len(self._records)), "either every slice has a class label or none"
        return ArchiveInfo(
            format=FORMAT,
            version=VERSION,
            schema=self.schema,
            resolution=self.resolution,
            slices=tuple(self._records),
            volumes=self.volumes,
            seen=self.seen,
            made=self.made,
            labels=labels or None,
            label_names=self.label_names if labels else None,
            pixel=self.pixel,
        )


def _require_names(*names: str) -> None:
    """Raise UserError for names that the reader would refuse."""
    if odd := [name for name in names if not is_plain_name(name)]:
        raise UserError(f"{shorten(odd[0])} can't stand in an archive: names must not look like paths")

"""Write an archive of joint slices."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib import config
from dnnlib.config import shorten
from dnnlib.errors import UserError
from dnnlib.staged import Staged
from slices.archive.format import FORMAT, INDEX, VERSION, ArchiveInfo, SliceRecord, Volume, pack_slice
from slices.archive.zips import Packed, ZipWriter, pack
from slices.schema import Schema, is_plain_name


class ArchiveWriter:
    """Write an archive; it appears at `path` only when the `with` block ends without an exception.

    made: how the archive came to be (tool version, command, options, split); stored as it is.
    label_names: the names of the class labels, if `add` will be given any.
    seen: for generated slices, the real patients whom their generator learned from; pixel: mm, as in ArchiveInfo.
    staged: the files that it appears with; without them it appears by itself, and replaces another only with `force`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        schema: Schema,
        resolution: int,
        made: dict[str, Any],
        label_names: tuple[str, ...] | None = None,
        seen: Iterable[str] = (),
        pixel: tuple[float, float] | None = None,
        staged: Staged | None = None,
        force: bool = True,
    ) -> None:
        self._alone = None if staged else Staged(path, force)
        self._staged = staged or self._alone
        self.path, self.schema, self.resolution = Path(path), schema, resolution
        self.made, self.label_names, self.seen = made, label_names, tuple(sorted(seen))
        self.pixel = pixel
        self.volumes: dict[str, Volume] = {}
        self._records: list[SliceRecord] = []
        self._labels: list[int | None] = []
        self._finished = False

    def __enter__(self) -> ArchiveWriter:
        self._require_names(*self.seen, *(self.label_names or ()))
        with contextlib.ExitStack() as opened:
            if self._alone:
                opened.enter_context(self._alone)
            opened.enter_context(self._staged.naming(self.path))
            self._zip = ZipWriter(self._staged.place(self.path))
            opened.callback(self._zip.abandon)  # which does nothing where all is written
            self._opened = opened.pop_all()
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self._opened:
            if error is not None:
                raise error
            self.finish()

    def __len__(self) -> int:
        return len(self._records)

    def add(self, stored: np.ndarray, *, patient: str, label: int | None = None, **where) -> None:
        """Append one stored joint slice, uint8 [C + K, resolution, resolution].

        patient, where: the fields of its SliceRecord; label: its class label.
        """
        expected = (self.schema.num_channels, self.resolution, self.resolution)
        assert stored.shape == expected, (stored.shape, expected)
        self.add_packed(pack_slice(stored), patient=patient, label=label, **where)

    def add_packed(self, member: Packed, *, patient: str, label: int | None = None, **where) -> None:
        """Append a slice that `pack_slice` packed, or that was packed in another archive."""
        self._require_names(patient, where.get("volume") or patient)
        n = len(self._records)
        name = f"slices/{n // 1000:05d}/{n:08d}.npy"
        self._zip.add(name, member)
        self._records.append(SliceRecord(file=name, patient=patient, **where))
        self._labels.append(label)

    def _require_names(self, *names: str) -> None:
        """Raise UserError for what the reader would refuse, before anything of it is written."""
        if odd := [name for name in names if not is_plain_name(name)]:
            raise UserError(f"{self.path}: {shorten(odd[0])} can't stand in an archive: names must not look like paths")

    def finish(self) -> None:
        """Write what is left, so that nothing but the renaming can fail."""
        if self._finished:
            return
        if not self._records:
            raise UserError(f"{self.path}: no slice to write")
        self._zip.add(INDEX, pack(json.dumps(config.to_json(self._info())).encode()))
        self._zip.close()
        self._finished = True

    def _info(self) -> ArchiveInfo:
        labelled = [label is not None for label in self._labels]
        assert all(labelled) or not any(labelled), "either every slice has a class label or none"
        labels = None
        if any(labelled):
            labels = tuple((r.file, label) for r, label in zip(self._records, self._labels, strict=True))
        return ArchiveInfo(
            format=FORMAT,
            version=VERSION,
            schema=self.schema,
            resolution=self.resolution,
            slices=tuple(self._records),
            volumes=self.volumes,
            seen=self.seen,
            made=self.made,
            labels=labels,
            label_names=self.label_names if labels else None,
            pixel=self.pixel,
        )

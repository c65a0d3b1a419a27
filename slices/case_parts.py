"""Cut cases on disk, until all are there: what lets an interrupted conversion go on where it stopped.

A case becomes a small zip of packed slices, written by the process that cut it, and a record of what they are. Its name
appears when it is complete. The conversion copies the packed slices into its archives at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib import config, files
from dnnlib.errors import UserError
from dnnlib.system import plain_text
from slices.archive import Volume
from slices.cases import Case
from slices.schema import Schema
from slices.zips import Packed, ZipReader, ZipWriter, pack

_JOB, _RECORD = "job.json", "case.json"
_RECORD_BYTES = 1 << 24


@dataclass(frozen=True)
class InputFile:
    """A file that a case was cut from, as it was then."""

    path: str
    size: int
    modified_ns: int


@dataclass(frozen=True)
class Origin:
    """What a case was, and of which files: another one makes another part."""

    case: str
    patient: str
    grid: tuple[int, ...] | None
    channels: tuple[int | None, ...]
    files: tuple[InputFile, ...]


@dataclass(frozen=True)
class Areas:
    """Slices, how many have no lesion, their pixels, and per class the pixels and the slices with any."""

    slices: int
    lesion_free: int
    pixels: int
    class_pixels: dict[str, int]
    class_slices: dict[str, int]


@dataclass(frozen=True)
class CaseRecord:
    """What was cut from a case. volume is None if no slice was chosen; skipped: reason -> slices."""

    origin: Origin
    volume: Volume | None
    indices: tuple[int, ...]
    areas: Areas
    skipped: dict[str, int]
    remarks: tuple[str, ...]


def origin_of(case: Case) -> Origin:
    """A case and its files as they are now. Raises UserError if one is missing."""
    case.require_files()
    states = {plain_text(str(path.resolve())): path.stat() for path in case.paths}
    found = [InputFile(path, state.st_size, state.st_mtime_ns) for path, state in states.items()]
    return Origin(case.name, case.patient, case.grid, tuple(file.channel for file in case.contrasts), tuple(found))


def measure(classes: np.ndarray, schema: Schema) -> Areas:
    """The areas of slices given as class indices, [N, H, W]."""
    counts = np.array([np.bincount(one.ravel(), minlength=len(schema.classes) + 1)[1:] for one in classes], np.int64)
    counts = counts.reshape(len(classes), len(schema.classes))
    pixels = dict(zip(schema.class_names, counts.sum(axis=0).tolist(), strict=True))
    slices = dict(zip(schema.class_names, (counts > 0).sum(axis=0).tolist(), strict=True))
    return Areas(len(classes), int((counts.sum(axis=1) == 0).sum()), classes.size, pixels, slices)


def write_part(path: Path, members: list[Packed], record: CaseRecord) -> None:
    with files.atomic_path(path) as temporary, contextlib.closing(ZipWriter(temporary)) as writer:
        for n, member in enumerate(members):
            writer.add(f"{n:05d}.npy", member)
        writer.add(_RECORD, pack(json.dumps(config.to_json(record)).encode()))


@dataclass(frozen=True)
class PartReader:
    """A cut case: its record, and its packed slices."""

    record: CaseRecord
    file: ZipReader

    @classmethod
    def open(cls, path: Path) -> PartReader:
        file = ZipReader(path)
        record = config.from_json(CaseRecord, json.loads(file.read(_RECORD, _RECORD_BYTES)), str(path))
        return cls(record, file)

    def members(self, most: int) -> Iterator[Packed]:
        """The packed slices in order. most: bytes that one may have, unpacked."""
        for n in range(len(self.record.indices)):
            yield self.file.packed(f"{n:05d}.npy", most)


class Workplace:
    """The folder in which one conversion keeps its cut cases; `with` holds it against a second one.

    job: JSON of everything that a cut case depends on, besides its files. What an earlier call left there for another
    job is removed.
    """

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        self.folder, self.job = folder, job

    def __enter__(self) -> Workplace:
        self._lock = self._locked()
        if self._job_there() != self.job:
            for path in self.folder.glob("*.zip"):
                path.unlink()
            files.write_json(self.folder / _JOB, self.job)
        for path in self.folder.glob(".*.part"):  # of processes that were killed
            path.unlink()
        return self

    def _locked(self) -> int:
        """The folder, opened and locked; made anew if another conversion removes it at this moment."""
        while True:
            folder = os.open(files.make_folder(self.folder), os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(folder)
                raise UserError(f"{self.folder}: another conversion to this place is running; wait for it") from None
            except OSError:  # a file system without locks
                pass
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(folder), os.stat(self.folder)):
                    return folder
            os.close(folder)

    def __exit__(self, *error) -> None:
        if self.folder.exists() and not any(self.folder.glob("*.zip")):
            self.remove()
        os.close(self._lock)

    def remove(self) -> None:
        """Remove the folder, of this conversion, with all that is in it."""
        if os.path.lexists(self.folder) and os.path.samestat(os.fstat(self._lock), os.stat(self.folder)):
            shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, side: str | None, case: Case) -> Path:
        """Where a cut case lies. Names of cases may be long, or differ in capitals only: a hash stands for them."""
        return self.folder / f"{side or 'all'}-{hashlib.sha256(case.name.encode()).hexdigest()[:24]}.zip"

    def finished(self, side: str | None, case: Case) -> bool:
        """Whether an earlier call cut this case from the same files."""
        path = self.path(side, case)
        if not path.exists():
            return False
        try:
            return PartReader.open(path).record.origin == origin_of(case)
        except (UserError, ValueError):
            return False

    def _job_there(self) -> Any:
        try:
            return files.read_json(self.folder / _JOB)
        except (OSError, UserError):
            return None

"""Cut cases on disk. With them an interrupted conversion continues where it stopped.

A cut case is a small zip of packed slices and a record of them. The process that cut it also writes it, and it appears
when it is complete. When all cases are cut, the conversion copies the packed slices into its archives.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnlib import config, files
from dnnlib.errors import UserError
from dnnlib.locks import try_lock
from dnnlib.publish import recover
from dnnlib.system import plain_text
from slices.archive.format import Volume
from slices.archive.zips import Packed, ZipReader, ZipWriter, pack
from slices.class_areas import ClassAreas
from slices.convert.cases import Case

_JOB, _RECORD = "job.json", "case.json"
_OURS = re.compile(r"job\.json|(all|train|test)-[0-9a-f]{24}\.zip")
_UNFINISHED = re.compile(rf"\.({_OURS.pattern})\.\d+\.part")  # a folder of `Staged`, left by a killed process
_RECORD_BYTES = 1 << 24  # most bytes of a record


@dataclass(frozen=True)
class InputFile:
    """The state of a file when a case was cut from it."""

    path: str
    size: int
    modified_ns: int
    changed_ns: int  # ctime: differs also if another file with the same mtime takes this one's place


@dataclass(frozen=True)
class Origin:
    """The case and the files that a cut case was made from. If anything differs, the case is cut again."""

    case: str
    patient: str
    grid: tuple[int, ...] | None
    channels: tuple[int | None, ...]  # as in VolumeFile
    files: tuple[InputFile, ...]


@dataclass(frozen=True)
class CutRecord:
    """Everything that is known of a cut case, except the slices themselves."""

    origin: Origin
    volume: Volume | None  # None if no slice was chosen
    indices: tuple[int, ...]  # positions of the chosen slices, from the feet
    areas: ClassAreas
    skipped: dict[str, int]  # reason -> slices
    remarks: tuple[str, ...]
    counted: dict[str, int]  # remark -> voxels
    lost: dict[str, float]  # remark -> share of the lesion's voxels


def origin_of(case: Case) -> Origin:
    """The origin of a case that is cut now. Raises UserError if a file is missing."""
    case.require_files()
    states = {plain_text(str(path.resolve())): path.stat() for path in case.paths}
    found = [InputFile(path, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in states.items()]
    return Origin(case.name, case.patient, case.grid, tuple(file.channel for file in case.contrasts), tuple(found))


def write_cut_case(path: Path, members: list[Packed], record: CutRecord) -> None:
    """Write a cut case, which appears at `path` when it is complete."""
    with files.atomic_path(path) as temporary, contextlib.closing(ZipWriter(temporary)) as writer:
        for n, member in enumerate(members):
            writer.add(f"{n:05d}.npy", member)
        writer.add(_RECORD, pack(json.dumps(config.to_json(record)).encode()))


@dataclass(frozen=True)
class CutCase:
    """A cut case: its record, and its packed slices."""

    record: CutRecord
    file: ZipReader

    @classmethod
    def open(cls, path: Path) -> CutCase:
        file = ZipReader(path)
        record = config.from_json(CutRecord, json.loads(file.read(_RECORD, _RECORD_BYTES)), str(path))
        return cls(record, file)

    def members(self, most: int) -> Iterator[Packed]:
        """Yield the packed slices in order. most: bytes that one may have, unpacked."""
        for n in range(len(self.record.indices)):
            yield self.file.packed(f"{n:05d}.npy", most)


class Workplace:
    """The folder in which one conversion keeps its cut cases. Inside a `with` block, it is locked against others.

    Cut cases of another job are removed. A link, or a folder with files of another kind, is refused.
    """

    def __init__(
        self,
        folder: Path,
        job: dict[str, Any],  # JSON of everything that a cut case depends on, besides its files
    ) -> None:
        self.folder, self.job = folder, job

    def __enter__(self) -> Workplace:
        self._lock = self._locked()
        try:
            for path in self.folder.iterdir():
                if unfinished := _UNFINISHED.fullmatch(path.name):
                    recover(self.folder / unfinished[1])
                elif not _is_ours(path):
                    raise UserError(f"{self.folder} is the folder for cut cases, but {path.name} is none: move it away")
            if self._job_there() != self.job:
                self._empty()
                files.write_json(self.folder / _JOB, self.job)
        except BaseException:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # fails if there is anything in it
            os.close(self._lock)
            raise
        return self

    def _locked(self) -> int:
        """Make, open and lock the folder. Repeats this if another conversion removes the folder meanwhile."""
        while True:
            if self.folder.is_symlink():
                raise UserError(
                    f"{self.folder} is a link, but cut cases are kept in a folder of that name: move it away"
                )
            folder = os.open(files.make_folder(self.folder), os.O_RDONLY | os.O_NOFOLLOW)
            if try_lock(folder) is False:
                os.close(folder)
                raise UserError(f"{self.folder}: another conversion to this place is running; wait for it")
            # Is the locked folder still the one of that name?
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(folder), os.lstat(self.folder)):
                    return folder
            os.close(folder)

    def __exit__(self, *error) -> None:
        if self._is_there() and not any(self.folder.glob("*.zip")):
            self.remove()
        os.close(self._lock)

    def remove(self) -> None:
        """Remove the cut cases, and the folder if nothing else is in it."""
        if self._is_there():
            self._empty()
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def remove_if_done(self, archives: list[Path]) -> None:
        """Remove cut cases older than all archives: an earlier call was killed between writing and tidying up."""
        recover(archives[0])  # the call may have been killed while it renamed the archives
        cut = list(self.folder.glob("*.zip"))
        if not cut or self.folder.is_symlink() or not all(path.exists() for path in archives):
            return
        if max(path.lstat().st_mtime_ns for path in cut) < min(path.stat().st_mtime_ns for path in archives):
            self._lock = self._locked()
            self.remove()
            os.close(self._lock)

    def _is_there(self) -> bool:
        """Whether the folder is still the one that was locked."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._lock), os.lstat(self.folder))
        return False

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            if _is_ours(path):
                path.unlink(missing_ok=True)

    def path(self, part: str | None, case: Case) -> Path:
        """The path of a cut case. It has a hash for a name, because names may be long or differ only in capitals."""
        return self.folder / f"{part or 'all'}-{hashlib.sha256(case.name.encode()).hexdigest()[:24]}.zip"

    def finished(self, part: str | None, case: Case) -> bool:
        """Whether an earlier call has cut this case from the same files."""
        path = self.path(part, case)
        if not path.exists():
            return False
        try:
            return CutCase.open(path).record.origin == origin_of(case)
        except (UserError, ValueError):
            return False

    def _job_there(self) -> Any:
        """The job that the folder's cut cases belong to; None if there is none yet."""
        if not (self.folder / _JOB).exists():
            return None
        job = files.read_json(self.folder / _JOB)
        if not isinstance(job, dict) or not {"schema", "options"} <= set(job):
            raise UserError(f"{self.folder / _JOB} has the name of a conversion's file but is none: move it away")
        return job


def _is_ours(path: Path) -> bool:
    return bool(_OURS.fullmatch(path.name)) and stat.S_ISREG(path.lstat().st_mode)

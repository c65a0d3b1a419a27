"""Archives of joint slices: a zip of .npy members and a dataset.json that says what they are."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib import config
from dnnlib.errors import UserError
from dnnlib.files import atomic_path
from slices.schema import LABEL_OFF, LABEL_ON, Schema

FORMAT, VERSION = "joint-slices", 1
INDEX = "dataset.json"
# A fixed date makes an archive a function of its content.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Volume:
    """Where slices came from: the source volume's grid, and the intensity window of each contrast.

    `affine` is 4×4 in mm; `windows` maps a contrast to the (low, high) intensities stored as 1 and 255.
    """

    patient: str
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    windows: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class SliceRecord:
    """One slice: its member, its patient, and either the volume and index it was cut from or the seed that made it."""

    file: str
    patient: str
    volume: str | None = None
    index: int | None = None
    seed: int | None = None
    snapshot: str | None = None


@dataclass(frozen=True)
class ArchiveInfo:
    """The content of dataset.json."""

    format: str
    version: int
    schema: Schema
    resolution: int
    slices: tuple[SliceRecord, ...]
    volumes: dict[str, Volume] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    labels: tuple[tuple[str, int], ...] | None = None
    label_names: tuple[str, ...] | None = None

    @property
    def patients(self) -> list[str]:
        """Names of the patients in the order of the slices."""
        return list(dict.fromkeys(record.patient for record in self.slices))

    @property
    def num_labels(self) -> int:
        """How many classes `--cond` would condition on, seen in these slices or not; 0 without class labels."""
        if self.labels is None:
            return 0
        return len(self.label_names) if self.label_names else 1 + max(label for _, label in self.labels)


class ArchiveWriter:
    """Write an archive; it appears at `path` only when the `with` block ends without an exception.

    made: how the archive came to be (tool version, command, options, split); stored as it is.
    label_names: the names of the class labels, if `add` will be given any.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        schema: Schema,
        resolution: int,
        made: dict[str, Any],
        label_names: tuple[str, ...] | None = None,
    ) -> None:
        self.path, self.schema, self.resolution = Path(path), schema, resolution
        self.made, self.label_names = made, label_names
        self.volumes: dict[str, Volume] = {}
        self._records: list[SliceRecord] = []
        self._labels: list[int | None] = []
        self._finished = False

    def __enter__(self) -> ArchiveWriter:
        self._file = atomic_path(self.path)
        temporary = self._file.__enter__()
        try:
            self._zip = zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=6)
        except BaseException as error:
            self._abandon(error)
        return self

    def add(
        self,
        stored: np.ndarray,
        *,
        patient: str,
        volume: str | None = None,
        index: int | None = None,
        seed: int | None = None,
        snapshot: str | None = None,
        label: int | None = None,
    ) -> None:
        """Append one stored joint slice, uint8 [C + K, resolution, resolution]."""
        expected = (self.schema.num_channels, self.resolution, self.resolution)
        assert stored.dtype == np.uint8 and stored.shape == expected, (stored.dtype, stored.shape, expected)
        n = len(self._records)
        name = f"slices/{n // 1000:05d}/{n:08d}.npy"
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(stored), allow_pickle=False)
        self._write(name, buffer.getvalue())
        self._records.append(SliceRecord(name, patient, volume, index, seed, snapshot))
        self._labels.append(label)

    def _write(self, name: str, content: bytes) -> None:
        member = zipfile.ZipInfo(name, _EPOCH)
        member.compress_type = zipfile.ZIP_DEFLATED
        member.external_attr = 0o644 << 16
        self._zip.writestr(member, content)

    def finish(self) -> None:
        """Write what is left, so that nothing but the renaming can fail; for archives that appear together."""
        if self._finished:
            return
        if not self._records:
            raise UserError(f"{self.path}: no slice to write")
        self._write(INDEX, json.dumps(config.to_json(self._info())).encode())
        self._zip.close()
        self._finished = True

    def __exit__(self, kind, error, trace) -> None:
        if error is not None:
            self._abandon(error)
        try:
            self.finish()
        except BaseException as failure:
            self._abandon(failure)
        self._file.__exit__(None, None, None)

    def _abandon(self, error: BaseException) -> None:
        """Close what is open, remove the temporary file, and let the error go on."""
        if handle := getattr(self, "_zip", None):
            handle._didModify = False  # nothing more to write: the directory of a half archive is of no use
            try:
                handle.close()
            except OSError:
                pass
        self._file.__exit__(type(error), error, error.__traceback__)
        raise error

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
            made=self.made,
            labels=labels,
            label_names=self.label_names if labels else None,
        )


class ArchiveReader:
    """Read an archive. Safe in many workers and processes: each opens the file for itself.

    Raises UserError with the file, the member and the reason for whatever doesn't fit.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._handle: zipfile.ZipFile | None = None
        self._owner: int | None = None
        self.info = self._read_info()
        self.schema, self.resolution = self.info.schema, self.info.resolution
        self._labels = dict(self.info.labels or ())
        if self.info.labels is not None:
            unlabelled = [r.file for r in self.info.slices if r.file not in self._labels]
            if unlabelled:
                raise UserError(
                    f"{self.path}: {len(unlabelled)} slices have no class label, the first is {unlabelled[0]}"
                )

            if wrong := [label for label in self._labels.values() if not 0 <= label < self.info.num_labels]:
                raise UserError(f"{self.path}: class label {wrong[0]} is not one of 0 to {self.info.num_labels - 1}")

    def __len__(self) -> int:
        return len(self.info.slices)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_owner": None}

    def read(self, i: int) -> np.ndarray:
        """Stored joint slice number i: uint8 [C + K, H, W]."""
        name = self.info.slices[i].file
        content = self._member(name)
        try:
            stored = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError, SyntaxError) as error:
            raise UserError(f"{self.path}: {name} is not a plain array ({error})") from None
        expected = (self.schema.num_channels, self.resolution, self.resolution)
        if stored.dtype != np.uint8 or stored.shape != expected:
            raise UserError(
                f"{self.path}: {name} holds {stored.dtype} {list(stored.shape)}; "
                f"its schema asks for uint8 {list(expected)}"
            )
        return stored

    def label(self, i: int) -> int | None:
        """Class label of slice i, or None in an archive without class labels."""
        return self._labels.get(self.info.slices[i].file)

    def by_patient(self) -> dict[str, list[int]]:
        """Patient -> numbers of that patient's slices, in the order of the archive."""
        groups: dict[str, list[int]] = {}
        for i, record in enumerate(self.info.slices):
            groups.setdefault(record.patient, []).append(i)
        return groups

    def read_checked(self, i: int) -> np.ndarray:
        """As `read`, and a UserError unless the label maps are one-hot."""
        stored = self.read(i)
        maps = stored[self.schema.num_contrasts :]
        values_fit = np.isin(maps, (LABEL_OFF, LABEL_ON)).all()
        if self.schema.num_maps and not (values_fit and ((maps == LABEL_ON).sum(axis=0) == 1).all()):
            raise UserError(f"{self.path}: the label maps of {self.info.slices[i].file} are not one-hot")
        return stored

    def _zip(self) -> zipfile.ZipFile:
        if self._handle is None or self._owner != os.getpid():  # a forked worker must not share the file position
            try:
                self._handle = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{self.path}: not a complete zip archive ({error}); expected one made by "
                    "dataset_tool.py or generate.py"
                ) from None
            except IsADirectoryError:
                raise UserError(
                    f"{self.path} is a folder; expected a .zip made by dataset_tool.py or generate.py"
                ) from None
            self._owner = os.getpid()
        return self._handle

    def _member(self, name: str) -> bytes:
        try:
            return self._zip().read(name)
        except KeyError:
            raise UserError(f"{self.path}: the member {name} is missing") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self.path}: the member {name} is damaged ({error})") from None

    def _read_info(self) -> ArchiveInfo:
        if not self.path.exists():
            raise UserError(f"{self.path}: no such file")
        if INDEX not in self._zip().namelist():
            raise UserError(
                f"{self.path}: no {INDEX} inside, so this is not an archive of joint slices; "
                "make one with dataset_tool.py convert"
            )
        try:
            content = json.loads(self._member(INDEX))
        except ValueError as error:
            raise UserError(f"{self.path}: {INDEX} is not JSON ({error})") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{self.path}: {INDEX} does not describe joint slices (its format should be {FORMAT!r})")
        if content.get("version") != VERSION:
            raise UserError(
                f"{self.path}: version {content.get('version')!r} of the format; this program reads {VERSION}"
            )
        info = config.from_json(ArchiveInfo, content, f"{self.path}: {INDEX}")
        if not info.slices:
            raise UserError(f"{self.path}: holds no slice")
        twice = [name for name, count in Counter(r.file for r in info.slices).items() if count > 1]
        if twice:
            raise UserError(f"{self.path}: {INDEX} lists {twice[0]} twice")
        members = set(self._zip().namelist())
        if missing := [r.file for r in info.slices if r.file not in members]:
            raise UserError(f"{self.path}: the member {missing[0]} is missing")
        return info


def require_same_kind(first: ArchiveReader, other: ArchiveReader) -> None:
    """Raise UserError unless two archives have the same schema and resolution."""
    if first.schema != other.schema:
        raise UserError(
            f"{other.path} has the channels {other.schema.describe()}, but {first.path} has {first.schema.describe()}; "
            "use archives of one schema"
        )
    if first.resolution != other.resolution:
        raise UserError(
            f"{other.path} has {other.resolution}×{other.resolution} pixels, but {first.path} has "
            f"{first.resolution}×{first.resolution}; convert both at one --resolution"
        )

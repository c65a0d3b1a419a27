"""Archives of joint slices: a zip of .npy members and a dataset.json that says what they are."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib import config
from dnnlib.config import shorten
from dnnlib.errors import UserError
from dnnlib.files import sha256
from dnnlib.staged import Staged
from slices.archive.zips import Packed, ZipReader, ZipWriter, pack
from slices.schema import LABEL_ON, Schema, is_plain_name

FORMAT, VERSION = "joint-slices", 2
INDEX = "dataset.json"
TRAIN, TEST = PARTS = ("train", "test")
LARGEST_RESOLUTION = 4096
LARGEST_LABEL = (1 << 16) - 1
_NAME = re.compile(r"slices/[0-9]{5,10}/[0-9]{8,13}\.npy")
# dataset.json takes at most so many bytes, and so many more for every member; Python's lists and
# dictionaries of it may take thirty times as much.
_INDEX_BYTES = (1 << 22, 1 << 11)


@dataclass(frozen=True)
class Volume:
    """Where slices came from: the source volume's grid, and the intensity window of each contrast.

    `affine` is 4×4 in mm; `pixel` is the edge of the archive's square pixels in mm; `windows` maps a contrast to the
    (low, high) intensities stored as 1 and 255.
    """

    patient: str
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    pixel: float
    windows: dict[str, tuple[float, float]]

    @property
    def slices(self) -> int | None:
        """How many slices it has from the feet to the head; None where its affine doesn't tell."""
        from nibabel.orientations import io_orientation  # what reads archives alone does without

        with np.errstate(all="ignore"):
            axes = io_orientation(np.array(self.affine))[:, 0].tolist()  # of the world: right, front, head
        return self.shape[axes.index(2)] if 2 in axes else None


@dataclass(frozen=True)
class SliceRecord:
    """One slice: its member, its patient, and either the volume and index it was cut from or the seed that made it.

    part: TRAIN or TEST, the side of the split that the patient is on; None where nothing was split.
    """

    file: str
    patient: str
    part: str | None = None
    volume: str | None = None
    index: int | None = None
    seed: int | None = None
    snapshot: str | None = None


@dataclass(frozen=True)
class ArchiveInfo:
    """The content of dataset.json.

    seen: for generated slices, the real patients whom their generator learned from.
    pixel: the least and the most mm that a pixel had in the slices that it learned from; None where nobody knows.
    """

    format: str
    version: int
    schema: Schema
    resolution: int
    slices: tuple[SliceRecord, ...]
    volumes: dict[str, Volume] = field(default_factory=dict)
    seen: tuple[str, ...] = ()
    made: dict[str, Any] = field(default_factory=dict)
    labels: tuple[tuple[str, int], ...] | None = None
    label_names: tuple[str, ...] | None = None
    pixel: tuple[float, float] | None = config.optional(None)

    @property
    def pixels(self) -> tuple[float, float] | None:
        """Least and most mm that a pixel has, of all slices of which that is known."""
        known = [*(volume.pixel for volume in self.volumes.values()), *(self.pixel or ())]
        return (min(known), max(known)) if known else None

    @property
    def patients(self) -> list[str]:
        """Names of the patients in the order of the slices."""
        return list(dict.fromkeys(record.patient for record in self.slices))

    @property
    def known_patients(self) -> frozenset[str]:
        """Whom a network knows that learned from these slices: their patients, and those whom their generator saw."""
        return frozenset((*self.patients, *self.seen))

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


class ArchiveReader:
    """Read an archive, from any number of threads and processes.

    Raises UserError with the file, the member and the reason for whatever doesn't fit.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder; expected a .zip made by dataset_tool.py or generate.py")
        if not self.path.is_file():  # of a pipe, the beginning would never come
            raise UserError(f"{self.path}: {'not a regular file' if self.path.exists() else 'no such file'}")
        self._zip = ZipReader(self.path)
        self.info = self._read_info()
        self._check_info()
        self.schema, self.resolution = self.info.schema, self.info.resolution
        self._labels = dict(self.info.labels or ())
        self._shape = (self.schema.num_channels, self.resolution, self.resolution)
        self._bytes = math.prod(self._shape)
        self._header = _npy_header(self._shape)

    def __len__(self) -> int:
        return len(self.info.slices)

    def read(self, i: int) -> np.ndarray:
        """Stored joint slice number i: uint8 [C + K, H, W], read-only."""
        name = self.info.slices[i].file
        content = self._zip.read(name, self._most_bytes)
        # As `pack_slice` writes it; NumPy would take longer to parse the header than inflating takes.
        if content.startswith(self._header) and len(content) == len(self._header) + self._bytes:
            return np.frombuffer(content, np.uint8, offset=len(self._header)).reshape(self._shape)
        try:
            stored = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except Exception as error:  # NumPy parses the header as Python, and nearly anything may come of that
            reason = shorten(str(error).partition("\n")[0])
            raise UserError(f"{self.path}: {name} is not a plain array ({reason})") from None
        if stored.dtype != np.uint8 or stored.shape != self._shape:
            raise UserError(
                f"{self.path}: {name} holds {stored.dtype} {list(stored.shape)}; "
                f"its schema asks for uint8 {list(self._shape)}"
            )
        return stored

    def packed(self, i: int) -> Packed:
        """Slice number i as it lies in the file, checked as by `read`, for another archive of its kind."""
        self.read(i)
        return self._zip.packed(self.info.slices[i].file, self._most_bytes)

    def identify(self) -> dict[str, str]:
        """Which archive this is, for records: its name without the folder, and its SHA-256."""
        return {"name": self.path.name, "sha256": sha256(self.path)}

    def label(self, i: int) -> int | None:
        """Class label of slice i, or None in an archive without class labels."""
        return self._labels.get(self.info.slices[i].file)

    def label_name(self, i: int) -> str | None:
        """Name of the class label of slice i, or its number where labels have no names."""
        label = self.label(i)
        return None if label is None else self.info.label_names[label] if self.info.label_names else str(label)

    def by_patient(self) -> dict[str, list[int]]:
        """Patient -> numbers of that patient's slices, in the order of the archive."""
        groups: dict[str, list[int]] = {}
        for i, record in enumerate(self.info.slices):
            groups.setdefault(record.patient, []).append(i)
        return groups

    def by_examination(self) -> dict[tuple[str, str | None], list[int]]:
        """(patient, volume) -> numbers of its slices; those of a patient that are of no volume, as fakes, are one."""
        groups: dict[tuple[str, str | None], list[int]] = {}
        for i, record in enumerate(self.info.slices):
            groups.setdefault((record.patient, record.volume), []).append(i)
        return groups

    def read_checked(self, i: int) -> np.ndarray:
        """As `read`, and a UserError unless the label maps are one-hot."""
        stored = self.read(i)
        if self.schema.num_maps and not _is_one_hot(stored[self.schema.num_contrasts :]):
            raise UserError(
                f"{self.path}: the label maps of {self.info.slices[i].file} are not one-hot: at every pixel, expected "
                f"{LABEL_ON} in one of them and 0 in the others"
            )
        return stored

    @property
    def _most_bytes(self) -> int:
        """Of a slice's member: a header written by another program may be longer than ours."""
        return self._bytes + (1 << 16)

    def _read_info(self) -> ArchiveInfo:
        if INDEX not in self._zip:
            raise UserError(
                f"{self.path}: no {INDEX} inside, so this is not an archive of joint slices; "
                "make one with dataset_tool.py convert"
            )
        least, each = _INDEX_BYTES
        try:
            content = config.parse_json(self._zip.read(INDEX, least + each * len(self._zip)))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.path}: {INDEX} is not JSON ({error})") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{self.path}: {INDEX} does not describe joint slices (its format should be {FORMAT!r})")
        if content.get("version") != VERSION:
            raise UserError(
                f"{self.path}: version {shorten(content.get('version'))} of the format; this program reads {VERSION}: "
                "make the archive again"
            )
        return config.from_json(ArchiveInfo, content, f"{self.path}: {INDEX}")

    def _check_info(self) -> None:
        """Refuse what fits dataset.json's types but makes no sense."""
        info, where = self.info, f"{self.path}: {INDEX}"
        if not info.slices:
            raise UserError(f"{self.path}: holds no slice")
        if not 1 <= info.resolution <= LARGEST_RESOLUTION:
            raise UserError(f"{where}: resolution {info.resolution}; expected 1 to {LARGEST_RESOLUTION}")
        for name, count in Counter(r.file for r in info.slices).items():
            if not _NAME.fullmatch(name):
                raise UserError(f"{where}: {shorten(name)} is no name of a slice; expected slices/00000/00000000.npy")
            if count > 1:
                raise UserError(f"{where} lists {name} twice")
            if name not in self._zip:
                raise UserError(f"{self.path}: the member {name} is missing")
        if info.pixel is not None and not 0 < info.pixel[0] <= info.pixel[1]:
            raise UserError(f"{where}: pixels of {info.pixel[0]:g} to {info.pixel[1]:g} mm")
        self._require_names(info.seen, *([name, volume.patient] for name, volume in info.volumes.items()))
        for name, volume in info.volumes.items():
            if reason := _nonsense(volume, info.schema):
                raise UserError(f"{where}: the volume {name} has {reason}")
        for record in info.slices:
            if record.part not in (None, *PARTS):
                raise UserError(
                    f"{where}: part {shorten(record.part)} of {record.file}; expected one of {', '.join(PARTS)}"
                )
            self._require_names([record.patient, record.volume or record.patient])
            if record.volume is not None and record.volume not in info.volumes:
                raise UserError(f"{where}: {record.file} is of the volume {record.volume}, which is not described")
            if (record.index or 0) < 0 or (record.seed or 0) < 0:
                raise UserError(f"{where}: {record.file} has a negative index or seed")
        self._check_labels()

    def _require_names(self, *groups: Iterable[str]) -> None:
        if odd := [name for group in groups for name in group if not is_plain_name(name)]:
            raise UserError(f"{self.path}: {INDEX}: {shorten(odd[0])}: names must not look like paths, or be too long")

    def _check_labels(self) -> None:
        info = self.info
        if info.label_names is not None:
            self._require_names(info.label_names)
            if len(set(info.label_names)) < len(info.label_names):
                raise UserError(f"{self.path}: {INDEX} has a class of one name twice: {', '.join(info.label_names)}")
        if info.labels is None:
            return
        labels = dict(info.labels)
        if len(labels) < len(info.labels):
            raise UserError(f"{self.path}: {INDEX} labels a slice twice")
        if unlabelled := [r.file for r in info.slices if r.file not in labels]:
            raise UserError(f"{self.path}: {len(unlabelled)} slices have no class label, the first is {unlabelled[0]}")
        most = min(info.num_labels - 1, LARGEST_LABEL)
        if wrong := [label for label in labels.values() if not 0 <= label <= most]:
            raise UserError(f"{self.path}: class label {wrong[0]} is not one of 0 to {most}")


def _nonsense(volume: Volume, schema: Schema) -> str:
    """What is wrong with a volume's description; empty if nothing is."""
    if min(volume.shape) < 1:
        return f"the shape {list(volume.shape)}"
    if [len(row) for row in volume.affine] != [4] * 4:
        return "an affine that is not 4×4"
    if volume.pixel <= 0:
        return f"pixels of {volume.pixel:g} mm"
    if missing := [name for name in schema.contrasts if name not in volume.windows]:
        return f"no window for {missing[0]}"
    if odd := [f"{low:g} to {high:g}" for low, high in volume.windows.values() if low > high]:
        return f"the window {odd[0]}"
    return ""


def _is_one_hot(maps: np.ndarray) -> bool:
    """Whether in every pixel one of the label maps [K, H, W] is LABEL_ON, all bits of a byte, and the others are 0."""
    return int(np.count_nonzero(maps)) == maps[0].size and bool((np.bitwise_or.reduce(maps) == LABEL_ON).all())


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The first bytes of a .npy file of uint8 in C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def pack_slice(stored: np.ndarray) -> Packed:
    """Pack one stored joint slice, uint8 [C + K, H, W], for `ArchiveWriter.add_packed`, in any process."""
    assert stored.dtype == np.uint8, stored.dtype
    return pack(_npy_header(stored.shape) + stored.tobytes())


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

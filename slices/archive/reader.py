"""Reader of archives of joint slices. It checks everything before use."""

from __future__ import annotations

import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dnnlib import config
from dnnlib.config import shorten
from dnnlib.errors import UserError
from dnnlib.files import sha256
from slices.archive.format import (
    FORMAT,
    INDEX,
    LARGEST_LABEL,
    LARGEST_RESOLUTION,
    PARTS,
    VERSION,
    ArchiveInfo,
    Volume,
    npy_header,
)
from slices.archive.zips import Packed, ZipReader
from slices.schema import LABEL_ON, Schema, is_plain_name

_NAME = re.compile(r"slices/[0-9]{5,10}/[0-9]{8,13}\.npy")
# Most bytes of dataset.json: a base, and so much for each member. Parsed by Python, they may take 30 times the memory.
_INDEX_BYTES = (1 << 22, 1 << 11)


class ArchiveReader:
    """An archive, readable from any number of threads and processes.

    Raises UserError naming the file, the member and the reason for anything that doesn't fit the format.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder; expected a .zip made by dataset_tool.py or generate.py")
        if not self.path.is_file():  # opening a pipe would wait forever
            raise UserError(f"{self.path}: {'not a regular file' if self.path.exists() else 'no such file'}")
        self._zip = ZipReader(self.path)
        self.info = self._read_info()
        self._check_info()
        self.schema, self.resolution = self.info.schema, self.info.resolution
        self._labels = dict(self.info.labels or ())
        self._shape = (self.schema.num_channels, self.resolution, self.resolution)
        self._bytes = math.prod(self._shape)
        self._header = npy_header(self._shape)

    def __len__(self) -> int:
        return len(self.info.slices)

    def read(self, i: int) -> np.ndarray:
        """Stored joint slice number i: uint8 [C + K, H, W], read-only."""
        name = self.info.slices[i].file
        content = self._zip.read(name, self._most_bytes)
        # Fast path for slices of `pack_slice`: NumPy needs longer to parse the header than ISA-L to inflate all.
        if content.startswith(self._header) and len(content) == len(self._header) + self._bytes:
            return np.frombuffer(content, np.uint8, offset=len(self._header)).reshape(self._shape)
        try:
            stored = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except Exception as error:  # NumPy parses the header as Python code, which can raise nearly anything
            reason = shorten(str(error).partition("\n")[0])
            raise UserError(f"{self.path}: {name} is not a plain array ({reason})") from None
        if stored.dtype != np.uint8 or stored.shape != self._shape:
            raise UserError(
                f"{self.path}: {name} holds {stored.dtype} {list(stored.shape)}; "
                f"its schema asks for uint8 {list(self._shape)}"
            )
        return stored

    def packed(self, i: int) -> Packed:
        """Slice number i, still packed, to be copied into another archive. It is read once to check it."""
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
        if label is None:
            return None
        return self.info.label_names[label] if self.info.label_names else str(label)

    def by_patient(self) -> dict[str, list[int]]:
        """Patient -> numbers of that patient's slices, in the order of the archive."""
        groups: dict[str, list[int]] = {}
        for i, record in enumerate(self.info.slices):
            groups.setdefault(record.patient, []).append(i)
        return groups

    def by_examination(self) -> dict[tuple[str, str | None], list[int]]:
        """(patient, volume) -> numbers of its slices. Slices of no volume, such as fakes, are grouped by patient."""
        groups: dict[tuple[str, str | None], list[int]] = {}
        for i, record in enumerate(self.info.slices):
            groups.setdefault((record.patient, record.volume), []).append(i)
        return groups

    def read_checked(self, i: int) -> np.ndarray:
        """Like `read`, but raises UserError unless the label maps are one-hot."""
        stored = self.read(i)
        if self.schema.num_maps and not _is_one_hot(stored[self.schema.num_contrasts :]):
            raise UserError(
                f"{self.path}: the label maps of {self.info.slices[i].file} are not one-hot: at every pixel, expected "
                f"{LABEL_ON} in one of them and 0 in the others"
            )
        return stored

    @property
    def _most_bytes(self) -> int:
        """Most bytes of a slice's member, unpacked. Headers of other programs may be longer than ours."""
        return self._bytes + (1 << 16)

    def _read_info(self) -> ArchiveInfo:
        """Read dataset.json. Raises UserError if it has another format or other types."""
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
        """Raise UserError for values that have the right types but make no sense."""
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
                raise UserError(f"{where}: {record.file} belongs to the volume {record.volume}, which is not described")
            if (record.index or 0) < 0 or (record.seed or 0) < 0:
                raise UserError(f"{where}: {record.file} has a negative index or seed")
        self._check_labels()

    def _require_names(self, *groups: Iterable[str]) -> None:
        if odd := [name for group in groups for name in group if not is_plain_name(name)]:
            raise UserError(f"{self.path}: {INDEX}: {shorten(odd[0])}: names must not look like paths, or be too long")

    def _check_labels(self) -> None:
        """Raise UserError for class labels that make no sense."""
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
        if unlabeled := [r.file for r in info.slices if r.file not in labels]:
            raise UserError(f"{self.path}: {len(unlabeled)} slices have no class label, the first is {unlabeled[0]}")
        most = min(info.num_labels - 1, LARGEST_LABEL)
        if wrong := [label for label in labels.values() if not 0 <= label <= most]:
            raise UserError(f"{self.path}: class label {wrong[0]} is not one of 0 to {most}")


def _nonsense(volume: Volume, schema: Schema) -> str:
    """The first thing wrong with a volume's description, in words; empty if nothing is."""
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
    """Whether at every pixel exactly one of the label maps [K, H, W] is LABEL_ON and the others are 0."""
    # LABEL_ON has all bits set. If the OR over the maps is LABEL_ON everywhere, each pixel has a map that isn't 0; if
    # there are no more such values than pixels, it has one only, which must then be LABEL_ON itself.
    return int(np.count_nonzero(maps)) == maps[0].size and bool((np.bitwise_or.reduce(maps) == LABEL_ON).all())

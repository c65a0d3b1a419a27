"""Broken and hostile files: each is refused with its name and a reason, or read correctly, within bounds.

Every kind of damage is a function that spoils a good file in one of many ways, seeded by the number of the case. The
cases of a kind run in a process of their own, whose memory is limited; it is this file, called as a program.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gzip
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from commands import ROOT
from dataset_tool import main
from dnnlib.errors import UserError
from dnnlib.files import atomic_path
from slices.archive.format import INDEX, Volume
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.nifti import read_nifti
from slices.schema import BRATS

MEMORY = 300 << 20  # bytes that reading may take, besides what the program itself takes
SECONDS = 5  # that a case may take, of the processor's time
HANGS = 40  # seconds after which a case hangs

RESOLUTION = 16
SHAPE = (24, 20, 16)  # voxels to L, P, S
KINDS: dict[str, tuple[Callable[[int, random.Random, Bench], None], int]] = {}

# What must become of a file. Where a checksum covers what was changed, nothing but the original content may be read;
# elsewhere, what is read must satisfy the schema.
REFUSED, SAME, SAME_OR_REFUSED, VALID_OR_REFUSED = "refused", "same", "same or refused", "valid or refused"


def kind(count: int) -> Callable:
    def register(function: Callable) -> Callable:
        KINDS[function.__name__.replace("_", " ")] = function, count
        return function

    return register


# --- good files -----------------------------------------------------------------------------------------------------


def draw_slices(count: int = 6) -> np.ndarray:
    """Stored joint slices, uint8 [N, 8, 16, 16]."""
    rng = np.random.default_rng(0)
    contrasts = rng.integers(0, 256, (count, 4, RESOLUTION, RESOLUTION), dtype=np.uint8)
    return BRATS.join(contrasts, rng.integers(0, 4, (count, RESOLUTION, RESOLUTION)))


def write_archive(path: Path, count: int = 6) -> Path:
    affine = ((-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 7.5), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    made = {"version": "0", "command": "test", "options": {"fov": 200.0, "slices": "all"}, "split": None}
    windows = {name: (0.0, 100.5) for name in BRATS.contrasts}
    with (
        atomic_path(path) as place,
        ArchiveWriter(place, BRATS, RESOLUTION, made, ("HGG", "LGG"), seen=("x", "y")) as writer,
    ):
        for n, stored in enumerate(draw_slices(count)):
            name = f"patient{n % 2}"
            writer.volumes[name] = Volume(name, SHAPE, affine, 1.0, windows)
            where = {"volume": name, "index": n} if n % 3 else {"seed": n, "snapshot": "s"}
            writer.add(stored, patient=name, part="train", label=n % 2, **where)
    return path


def draw_volumes() -> dict[str, np.ndarray]:
    """Four contrasts and 'seg' of a small head, [L, P, S]."""
    rng = np.random.default_rng(0)
    l, p, s = np.indices(SHAPE)
    inside = ((l - 12) / 9) ** 2 + ((p - 10) / 8) ** 2 + ((s - 8) / 7) ** 2 < 1
    volumes = {}
    for n, contrast in enumerate(BRATS.contrasts):
        volumes[contrast] = np.where(inside, 200 + 50 * n + rng.integers(0, 300, SHAPE), 0).astype(np.int16)
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:16, 6:14, 5:11], labels[10:14, 8:12, 6:10], labels[11:13, 9:11, 7:9] = 2, 4, 1
    return volumes | {"seg": labels}


# Of a NIfTI-1 header: where each field lies, and what it holds.
FIELDS = {
    "sizeof_hdr": (0, "i"),
    "dim": (40, "8h"),
    "datatype": (70, "h"),
    "bitpix": (72, "h"),
    "pixdim": (76, "8f"),
    "vox_offset": (108, "f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "qform_code": (252, "h"),
    "sform_code": (254, "h"),
    "quatern": (256, "6f"),
    "srow": (280, "12f"),
    "magic": (344, "4s"),
    "extension": (348, "4s"),
}
NAN, INF = float("nan"), float("inf")


def nifti(voxels: np.ndarray, order: str = "<", **fields: Any) -> bytes:
    """A NIfTI-1 file; `fields` overwrite those of the header, a tuple all values of a field."""
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_sform(np.diag((-1.0, -1, 1, 1)), 1)
    header["pixdim"][1:4] = 1
    header["vox_offset"], header["magic"] = 352, b"n+1"
    content = bytearray(header.binaryblock + bytes(4) + voxels.astype(voxels.dtype.newbyteorder(order)).tobytes("F"))
    for name, value in fields.items():
        place, form = FIELDS[name]
        struct.pack_into(order + form, content, place, *(value if isinstance(value, tuple) else (value,)))
    return bytes(content)


def pack_gzip(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


# --- zips that lie --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A member of a zip as the file has it. The directory may say something else than what stands before the content.

    raw: its bytes in the file; offset: where the directory says that it lies; length: bytes in the file, by the
    directory.
    """

    name: bytes
    raw: bytes
    size: int
    crc: int
    method: int = 8
    flags: int = 0x800
    offset: int | None = None
    length: int | None = None
    local_name: bytes | None = None
    extra: bytes = b""


def deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=-15)
    return packer.compress(content) + packer.flush()


def entry(name: str | bytes, content: bytes, **changes: Any) -> Entry:
    name = name if isinstance(name, bytes) else name.encode()
    return replace(Entry(name, deflate(content), len(content), zlib.crc32(content)), **changes)


def build_zip(entries: Sequence[Entry], **end: int) -> bytes:
    """A zip of these members. end: count, size and offset of the directory, if its end is to say something else."""
    file, directory = io.BytesIO(), io.BytesIO()
    for e in entries:
        place = file.tell() if e.offset is None else e.offset
        length = len(e.raw) if e.length is None else e.length
        sizes = e.crc, length & 0xFFFFFFFF, e.size & 0xFFFFFFFF
        name = e.name if e.local_name is None else e.local_name
        file.write(
            struct.pack("<4s5H3I2H", b"PK\3\4", 20, e.flags, e.method, 0, 33, *sizes, len(name), 0) + name + e.raw
        )
        directory.write(
            struct.pack(
                "<4s6H3I5H2I",
                b"PK\1\2",
                20,
                20,
                e.flags,
                e.method,
                0,
                33,
                *sizes,
                len(e.name),
                len(e.extra),
                0,
                0,
                0,
                0,
                place & 0xFFFFFFFF,
            )
            + e.name
            + e.extra
        )
    values = {"count": len(entries) & 0xFFFF, "size": directory.tell(), "offset": file.tell()} | end
    count, size, offset = values["count"], values["size"], values["offset"]
    return (
        file.getvalue() + directory.getvalue() + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, offset, 0)
    )


def as_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npy_header(text: str, content: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy file with any text where NumPy expects a dictionary."""
    header = text.encode() + b"\n"
    return (
        b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(header)) + header + content
    )


def repeated(unit: bytes, times: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """A deflate stream of `before`, `unit` many times, `after`; small however large it unpacks."""
    packer = zlib.compressobj(9, wbits=-15)
    start = packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(unit) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, wbits=-15)
    return start + block * times + packer.compress(after) + packer.flush()


# --- trying a file --------------------------------------------------------------------------------------------------


class Wrong(AssertionError):
    """A case did not end as it must."""


def require(condition: Any, *words: object) -> None:
    if not condition:
        raise Wrong(" ".join(map(str, words)))


class Bench:
    """Good files to be spoiled, and what must hold for a spoiled one. `refused` and `read` count the outcomes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.refused, self.read = folder, 0, 0
        self.marker = folder / "executed"
        folder.mkdir(parents=True, exist_ok=True)
        path = write_archive(folder / "good.zip")
        self.archive = path.read_bytes()
        with zipfile.ZipFile(path) as file:
            self.members = {name: file.read(name) for name in file.namelist()}
            self.places = {info.filename: info.header_offset for info in file.infolist()}
            self.directory = file.start_dir
        self.slices = [name for name in self.members if name != INDEX]
        reader = ArchiveReader(path)
        self.info, self.stored = reader.info, [reader.read(i) for i in range(len(reader))]
        path.unlink()
        self.volumes = draw_volumes()
        self.files = {name: pack_gzip(nifti(voxels)) for name, voxels in self.volumes.items()}
        self.n = 0

    def index(self) -> Any:
        """The content of dataset.json, to be changed."""
        return json.loads(self.members[INDEX])

    def entries(self, **changed: bytes) -> list[Entry]:
        """The members of the good archive, those in `changed` with another content."""
        return [entry(name, content) for name, content in (self.members | changed).items()]

    def with_index(self, index: Any) -> bytes:
        text = index if isinstance(index, bytes) else json.dumps(index).encode()
        return build_zip(self.entries(**{INDEX: text}))

    def with_slice(self, content: bytes, random: random.Random) -> bytes:
        return build_zip(self.entries(**{random.choice(self.slices): content}))

    @contextlib.contextmanager
    def place(self) -> Iterator[Path]:
        """An empty folder; nothing may appear beside it."""
        before = set(os.listdir(self.folder))
        folder = self.folder / f"case{self.n}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
        require(set(os.listdir(self.folder)) == before, "left behind:", set(os.listdir(self.folder)) - before)
        require(not self.marker.exists(), "code in the file was executed")

    def call(self, *arguments: object) -> tuple[int, str]:
        """Run dataset_tool.py: its exit code, and its error message if it refused."""
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        output = result.output.replace("\r", "\n")
        require(result.exit_code in (0, 2), "exit code", result.exit_code, output)
        if not result.exit_code:
            return 0, output
        errors = re.findall(r"^error: .*", output, re.MULTILINE)
        require(len(errors) == 1 and output.rstrip().endswith(errors[0].rstrip()), "not one message:", output[-2000:])
        return 2, errors[0]

    def judge(self, message: str | None, expected: str, *names: object) -> None:
        """message: why the file was refused, None if it was read; names: one of which the message must contain."""
        if message is None:
            require(expected != REFUSED, "was read, but must be refused")
            self.read += 1
            return
        require(expected != SAME, "was refused, but must be read:", message)
        require(any(str(name) in message for name in names), f"names none of {names}:", message[:500])
        require(len(message) < 2000 and message.isprintable(), "no message for a terminal:", repr(message[:2000]))
        self.refused += 1

    # --- archives ---

    def try_archive(self, content: bytes, expected: str, by_programs: bool = True) -> None:
        """Read an archive here, and by turns with the programs."""
        with self.place() as folder:
            path = folder / "broken.zip"
            path.write_bytes(content)
            message = None
            try:
                reader = ArchiveReader(path)
                found = [reader.read_checked(i) for i in range(len(reader))]
                same = reader.info == self.info and all(map(np.array_equal, found, self.stored))
                del reader, found
            except UserError as error:
                message = str(error)
            self.judge(message, expected, path)
            if message is None and expected in (SAME, SAME_OR_REFUSED):
                require(same, "what was read is not what was written")
            if by_programs:
                self.run_program(path, folder / "new", message)

    def run_program(self, path: Path, dest: Path, message: str | None) -> None:
        """Give an archive to one of the programs, by turns. message: why it can't be read, if so."""
        way = self.n % 7
        if way in (0, 1):
            code, words = self.call("inspect", path, *(["--out", dest / "x.png"] if way else []))
            require(code == 2 * (message is not None), "inspect judges otherwise:", code, words)
        elif way == 2:  # it copies slices as they are packed
            code, words = self.call("subset", path, "--dest", dest / "x.zip", "--patients", 1)
            if code == 0:
                copy = ArchiveReader(dest / "x.zip")
                require(all(copy.read(i) is not None for i in range(len(copy))), "a copy can't be read")
        elif way in (3, 4):
            code, words = self.call("export", path, "--dest", dest, "--format", ("nifti", "png")[way - 3])
        else:
            return
        if code:
            require(str(path) in words, "the message does not name the file:", words)
            require(way in (0, 1) or not dest.exists(), "left behind:", list(dest.parent.rglob("*")))
            require(not list(dest.glob("*")), "left behind:", list(dest.glob("*")))

    # --- cases ---

    def write_case(self, source: Path, name: str, files: dict[str, bytes | None]) -> Path:
        folder = source / "HGG" / name
        folder.mkdir(parents=True)
        for contrast, content in (self.files | files).items():
            if content is not None:
                suffix = ".nii.gz" if content[:2] == b"\x1f\x8b" or contrast not in files else ".nii"
                (folder / f"{name}_{contrast}{suffix}").write_bytes(content)
        return folder

    def try_case(self, files: dict[str, bytes | None], expected: str, *, same_voxels: str | None = None) -> None:
        """Convert a case in which `files` are spoiled (None: missing).

        same_voxels: of the spoiled file, if it is read, the voxels must be those of this good one.
        """
        with self.place() as folder:
            source, name = folder / "source", f"Brats18_X_{self.n}_1"
            case = self.write_case(source, name, files)
            unreadable = []
            for path in sorted(case.iterdir()):
                try:
                    found = read_nifti(path)
                except UserError as error:
                    require(str(path) in str(error), "does not name the file:", error)
                    unreadable.append(path)
                else:
                    require(found.voxels.ndim == 3 and found.voxels.size, "an odd shape", found.voxels.shape)
                    require(np.isfinite(found.affine).all(), "an odd affine", found.affine)
                    if same_voxels and f"{name}_{same_voxels}." in path.name:
                        require(np.array_equal(found.voxels, self.volumes[same_voxels]), "other voxels were read")
                        require(np.array_equal(found.affine, np.diag((-1, -1, 1, 1))), "another affine was read")
            self.convert(folder, source, case, expected, unreadable)

    def convert(self, folder: Path, source: Path, case: Path, expected: str, unreadable: list[Path]) -> None:
        """Convert the case, in one of several ways, and see what there is afterwards.

        unreadable: which of its files can't be read.
        """
        way, dest, options = self.n % 5, folder / "x.zip", ["--slices", ("tumor", "all")[self.n % 2]]
        old = None
        if way == 1:  # over an archive that is there
            dest.write_bytes(old := self.archive)
            options += ["--force"]
        elif way == 2:
            dest = folder / "new" / "deep" / "x.zip"
        elif way == 3:  # beside a good one, into two archives
            self.write_case(source, "Brats18_Y_0_1", {})
            dest = folder / "new"
        elif way == 4:
            self.write_case(source, "Brats18_Y_0_1", {})
            options += ["--on-error", "skip"]
        before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
        arguments = ("--source", source, "--dest", dest, "--resolution", RESOLUTION, "--workers", 1, *options)
        code, words = self.call("convert", *arguments)
        if way == 4:  # the good case is there in any case
            require(code == 0, "one bad case is not skipped:", words)
            patients = self.check(dest)
            left_out = re.findall(r"^left out: (.*)", words, re.MULTILINE)
            self.judge(None if case.name in patients else left_out[0], expected, *unreadable or [case])
            require(not unreadable or case.name not in patients, "read after all", unreadable)
            return
        self.judge(words if code else None, expected, *unreadable or [source])
        require(code or not unreadable, "converted, but a file is unreadable:", unreadable)
        if code == 0:
            for path in [dest] if dest.suffix == ".zip" else [dest / "train.zip", dest / "test.zip"]:
                self.check(path)
            return
        after = sorted(path.relative_to(folder) for path in folder.rglob("*"))
        if (
            "are kept in" in words or way == 3
        ):  # cases that are cut are kept for the next call, and nothing else is there
            after = [path for path in after if path.parts[0] != "new" or ".converting" not in path.parts]
            require(after in (before, before + [Path("new")], sorted([*before, Path("new")])), "left behind:", after)
        else:
            require(after == before, "left behind:", set(after) - set(before))
        require(old is None or dest.read_bytes() == old, "the old archive changed")

    def check(self, path: Path) -> list[str]:
        """An archive must be there, and be whole. Returns its patients."""
        reader = ArchiveReader(path)
        for i in range(len(reader)):
            reader.read_checked(i)
        require(not list(path.parent.glob(".*")), "left behind:", list(path.parent.glob(".*")))
        return reader.info.patients


# --- kinds of damage ------------------------------------------------------------------------------------------------


def cut_places(content: bytes, n: int, random: random.Random, ends: Sequence[int]) -> int:
    """A place to cut a file at: first the telling ones, then any."""
    return ends[n] if n < len(ends) else random.randrange(len(content))


@kind(45)
def truncated_archive(n: int, random: random.Random, bench: Bench) -> None:
    size = len(bench.archive)
    ends = [0, 1, 4, 29, 30, size - 1, size - 22, size - 23, bench.directory, bench.directory + 46, size - 2]
    cut = cut_places(bench.archive, n, random, ends)
    content = bench.archive[:cut]
    if n % 3 == 2:  # as a file may look after a crash: its length is there, its end is not
        content += bytes(size - cut)
    bench.try_archive(content, REFUSED if content != bench.archive else SAME)


@kind(45)
def truncated_gzip(n: int, random: random.Random, bench: Bench) -> None:
    name = random.choice(list(bench.files))
    content = bench.files[name]
    if n % 9 == 8:  # not compressed
        content = nifti(bench.volumes[name])
        bench.try_case({name: content[: random.randrange(len(content))]}, REFUSED)
        return
    cut = cut_places(content, n, random, [0, 1, 2, 3, 9, 10, 11, len(content) - 1, len(content) - 8, len(content) - 9])
    zeros = bytes(len(content) - cut) if n % 4 == 3 else b""
    bench.try_case({name: content[:cut] + zeros}, REFUSED if content[cut:].strip(b"\0") or not zeros else SAME)


def flipped(content: bytes, places: Sequence[int], random: random.Random, most: int = 4) -> bytes:
    changed = bytearray(content)
    for place in random.sample(list(places), min(random.randint(1, most), len(places))):
        changed[place] ^= random.randint(1, 255)
    return bytes(changed)


@kind(120)
def flipped_bytes_of_archives(n: int, random: random.Random, bench: Bench) -> None:
    size = len(bench.archive)
    place = random.choice(list(bench.places.values()))
    places = (
        range(size),
        range(place, place + 30),  # a member's header
        range(bench.directory, size),
        range(size - 22, size),  # the end of the directory
        range(place + 30, min(place + 200, size)),  # its name and content
        [*range(place + 14, place + 26), *range(bench.directory + 16, bench.directory + 28)],  # checksums and lengths
    )[n % 6]
    bench.try_archive(flipped(bench.archive, places, random), SAME_OR_REFUSED)


@kind(50)
def flipped_bytes_of_gzip_files(n: int, random: random.Random, bench: Bench) -> None:
    name = random.choice(list(bench.files))
    content = bench.files[name]
    places = (range(10), range(10, len(content)), range(len(content) - 8, len(content)), range(10, 60))[n % 4]
    bench.try_case({name: flipped(content, places, random)}, VALID_OR_REFUSED, same_voxels=name)


@kind(80)
def flipped_bytes_of_nifti_headers(n: int, random: random.Random, bench: Bench) -> None:
    name = random.choice(list(bench.files))
    place, form = FIELDS[list(FIELDS)[n % len(FIELDS)]]
    places = range(place, place + struct.calcsize(form)) if n < 60 else range(352)
    content = flipped(nifti(bench.volumes[name]), places, random, 2)
    bench.try_case({name: pack_gzip(content) if n % 2 else content}, VALID_OR_REFUSED)


HOSTILE_VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    10**400,
    -(10**18),
    0.5,
    -0.0,
    1e308,
    NAN,
    INF,
    -INF,
    "",
    "x",
    "../x",
    "/x",
    "x" * 200_000,
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "\ud800",
    "\u202e",
    [],
    [[]],
    [None],
    {},
    {"": 0},
    {"a": {"b": []}},
    [0] * 50_000,
    ["x"] * 5,
    [1e999],
    16,
    65536,
    10**9,
]


def nodes(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """The places of all values in JSON."""
    if path:
        yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from nodes(value, (*path, key))


def put(tree: Any, path: tuple, value: Any) -> Any:
    """Replace a value; returns what was there."""
    for key in path[:-1]:
        tree = tree[key]
    old, tree[path[-1]] = tree[path[-1]], value
    return old


def generic(path: tuple) -> tuple:
    return tuple("*" if isinstance(key, int) else key for key in path)


@kind(240)
def wrong_JSON_types(n: int, random: random.Random, bench: Bench) -> None:
    if n < 16:
        depth = (900, 960, 990, 5_000, 10_000, 100_000, 40, 200)[n % 8]
        deep = (b"[" * depth + b"]" * depth) if n < 8 else (b'{"a":' * depth + b"1" + b"}" * depth)
        places = ({"made": "@"}, {"version": "@"}, {"made": {"options": {"x": "@"}}}, {"slices": "@"})
        index = bench.index()
        index.update(places[random.randrange(4)])
        bench.try_archive(bench.with_index(json.dumps(index).encode().replace(b'"@"', deep)), VALID_OR_REFUSED)
        return
    index = bench.index()
    if n < 24:
        text = json.dumps(index).encode()
        texts = (
            text[:-1],
            text + b"}",
            text.replace(b":", b"=", 1),
            b"\xff" + text,
            b"",
            b"[]",
            b"null",
            text.decode().encode("utf-16"),
        )
        bench.try_archive(bench.with_index(texts[n - 16]), SAME if n == 23 else REFUSED)
        return
    kinds: dict[tuple, list[tuple]] = {}
    for path in nodes(index):
        kinds.setdefault(generic(path), []).append(path)
    path = random.choice(kinds[list(kinds)[n % len(kinds)]])
    value = random.choice(HOSTILE_VALUES)
    old = put(index, path, value)
    expected = VALID_OR_REFUSED
    if path[0] != "made" and old is not None and value is not None and type(value) is not type(old):
        expected = VALID_OR_REFUSED if type(old) is float and type(value) is int else REFUSED
    bench.try_archive(bench.with_index(index), expected)


@kind(60)
def missing_members(n: int, random: random.Random, bench: Bench) -> None:
    if n % 3 == 0:
        files: dict[str, bytes | None] = {name: None for name in random.sample(list(bench.files), 1 + n % 5)}
        with bench.place() as folder:
            source, name = folder / "source", f"Brats18_X_{n}_1"
            case = bench.write_case(source, name, files)
            code, words = bench.call("convert", "--source", source, "--dest", folder / "x.zip", "--resolution", 16)
            bench.judge(words if code else None, REFUSED, case, source)
            require(os.listdir(folder) == ["source"], "left behind:", os.listdir(folder))
    elif n % 3 == 1:
        names = [random.choice(bench.slices), INDEX, *random.sample(bench.slices, 3)][: 1 + n % 4]
        left = {name: content for name, content in bench.members.items() if name not in names}
        if n % 2:  # they bear other names instead
            left |= {random.choice(("x", name.upper(), name + "x", "./" + name)): bench.members[name] for name in names}
        bench.try_archive(build_zip([entry(name, content) for name, content in left.items()]), REFUSED)
    else:
        index = bench.index()
        path = random.choice([path for path in nodes(index) if isinstance(path[-1], str)])
        tree = index
        for key in path[:-1]:
            tree = tree[key]
        del tree[path[-1]]
        bench.try_archive(bench.with_index(index), VALID_OR_REFUSED)


@kind(40)
def duplicate_names(n: int, random: random.Random, bench: Bench) -> None:
    name, other = random.choice(bench.slices), random.choice([*bench.slices, INDEX])
    entries, index = bench.entries(), bench.index()
    way = n % 8
    if way == 0:
        bench.try_archive(build_zip([*entries, entry(other, bench.members[random.choice([name, other])])]), REFUSED)
    elif way == 1:  # names that are one after what stands behind a zero byte is dropped
        bench.try_archive(build_zip([*entries, entry(other.encode() + b"\0x", b"x")]), REFUSED)
    elif way == 2:
        index["slices"].append(random.choice(index["slices"]))
        bench.try_archive(bench.with_index(index), REFUSED)
    elif way == 3:
        index["labels"].append([random.choice(index["slices"])["file"], random.randrange(2)])
        bench.try_archive(bench.with_index(index), REFUSED)
    elif way == 4:  # an object that has a name twice: the first one counts for some programs, the last for others
        key = random.choice(["slices", "schema", "resolution", "volumes", "format"])
        text = json.dumps(index)
        bench.try_archive(
            bench.with_index(f"{text[:-1]}, {json.dumps(key)}: {json.dumps(index[key])}}}".encode()), REFUSED
        )
    elif way == 5:
        names = index["schema"][random.choice(["contrasts", "classes", "regions"])]
        names.append(names[0])
        bench.try_archive(bench.with_index(index), REFUSED)
    elif way == 6:
        with bench.place() as folder:
            source = folder / "source"
            bench.write_case(source, f"Brats18_X_{n}_1", {})
            shutil.copytree(source / "HGG", source / "LGG")
            code, words = bench.call("convert", "--source", source, "--dest", folder / "x.zip", "--resolution", 16)
            bench.judge(words if code else None, REFUSED, source)
    else:  # the directory has one content twice, under two names
        k = random.randrange(1, len(entries))
        entries[k] = replace(entries[k], offset=random.choice([0, bench.places[bench.slices[0]]]))
        bench.try_archive(build_zip(entries), REFUSED)


BAD_NAMES = [
    "../x",
    "../../etc/passwd",
    "/etc/passwd",
    "/tmp/x",
    "..",
    ".",
    "C:\\x",
    "..\\x",
    "\\\\server\\x",
    "a/../../x",
    "~root/x",
    "file:///etc/passwd",
    "slices/00000/../../../x.npy",
    "/slices/00000/00000000.npy",
    "slices//00000000.npy",
    "x\0y",
    "x\ny",
    "\x1b]0;x\x07",
    "\u202ex",
    ".hidden",
    " x",
    "x" * 300,
    "slices/00000/00000000.npy/",
    "./slices/00000/00000000.npy",
]


@kind(100)
def names_that_lead_elsewhere(n: int, random: random.Random, bench: Bench) -> None:
    bad, way = BAD_NAMES[n % len(BAD_NAMES)], n // len(BAD_NAMES)
    index = bench.index()
    if way == 0:  # the archive has and lists a slice of such a name
        file = index["slices"][0]["file"]
        index["slices"][0]["file"] = index["labels"][0][0] = bad
        names = {file: bad}
        members = bench.members | {INDEX: json.dumps(index).encode()}
        entries = [entry(names.get(name, name), content) for name, content in members.items()]
        bench.try_archive(build_zip(entries), REFUSED)
    elif way == 1:  # nobody asks for the member
        extra = entry(bad, b"x")
        bench.try_archive(build_zip([*bench.entries(), extra]), SAME_OR_REFUSED)
    elif way in (2, 3):
        places = [
            ("slices", 0, "patient"),
            ("slices", 0, "volume"),
            ("seen", 0),
            ("schema", "contrasts", 0),
            ("label_names", 0),
            ("schema", "classes", 0, "name"),
            ("schema", "regions", 0, "name"),
            ("volumes", "patient0", "patient"),
            ("slices", 0, "part"),
            ("slices", 0, "file"),
            ("labels", 0, 0),
        ]
        put(index, random.choice(places), bad)
        bench.try_archive(bench.with_index(index), REFUSED)
    else:
        index["volumes"][bad] = index["volumes"].pop("patient1")
        for record in index["slices"]:
            if record["volume"] == "patient1":
                record["volume"] = bad
        bench.try_archive(bench.with_index(index), REFUSED)


@kind(72)
def zip_bombs(n: int, random: random.Random, bench: Bench) -> None:
    name, index = random.choice(bench.slices), bench.index()
    size = len(bench.members[name])
    zeros = repeated(bytes(1 << 20), 4 << random.randrange(8))  # 4 MB to 512 MB, a thousandth of it in the file
    unpacked = zlib.crc32(b"")
    entries = [e for e in bench.entries() if e.name != name.encode()]
    way = n % 12
    expected = REFUSED
    if way == 0:  # the directory promises what is expected
        entries.append(Entry(name.encode(), zeros, size, unpacked))
    elif way == 1:  # it promises as much as there is
        entries.append(Entry(name.encode(), zeros, random.choice([1 << 20, 1 << 30, 2**32 - 2]), unpacked))
    elif way == 2:  # gigabytes of spaces
        spaces = repeated(b" " * (1 << 20), 2048, before=b"{", after=b"}")
        entries = [e for e in bench.entries() if e.name != INDEX.encode()]
        entries.append(Entry(INDEX.encode(), spaces, random.choice([1000, 2**31, 2**22]), unpacked))
    elif way == 3:  # JSON within the limit that becomes as large as possible in Python
        unit = (b"{},", b"[],", b'{"":0},', b"0.1,", b'"ab",', b"[[]],")[n // 12 % 6]
        index["made"] = "@"
        text = json.dumps(index).encode().replace(b'"@"', b'{"x":[' + unit * (4_000_000 // len(unit)) + b"0]}")
        bench.try_archive(bench.with_index(text), VALID_OR_REFUSED, by_programs=False)
        return
    elif way == 4:  # members in each other: every one is the local header and the content of the next
        count = 2000
        entries = [entry(f"slices/00000/{k:08d}.npy", b"", offset=0, length=len(zeros)) for k in range(count)]
        entries[0] = replace(entries[0], raw=zeros, size=size)
        index["slices"] = [{"file": e.name.decode(), "patient": "a"} for e in entries]
        index["labels"], index["volumes"] = None, {}
        entries.append(entry(INDEX, json.dumps(index).encode()))
    elif way == 5:
        index["resolution"] = random.choice([10**9, 2**31, 4097, 10**18, -16, 0, 4096])
        entries = bench.entries(**{INDEX: json.dumps(index).encode()})
    elif way == 6:  # a schema of any number of channels
        key = random.choice(["contrasts", "classes", "regions"])
        one = {
            "contrasts": "c{}",
            "classes": {"name": "c{}", "title": "x", "value": 0},
            "regions": {"name": "r{}", "classes": []},
        }
        index["schema"][key] = [json.loads(json.dumps(one[key]).replace("{}", str(k))) for k in range(1000)]
        for k, value in enumerate(index["schema"]["classes"]):
            value["value"] = k + 1
        entries = bench.entries(**{INDEX: json.dumps(index).encode()})
    elif way == 7:  # lengths and places beyond all measure
        big = random.choice([2**32 - 1, 2**31, 2**63 - 1, 2**64 - 1])
        if n // 12 % 2:  # in the directory's end
            good = build_zip(bench.entries())[:-22]
            values = [random.choice([big, 7, 0]) for _ in range(3)]
            end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, values[0], *values)
            end += struct.pack("<4sIQI", b"PK\6\7", 0, random.choice([len(good), big]), 1)
            end += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
            bench.try_archive(good + end, REFUSED)
            return
        extra = struct.pack("<HHQQQ", 1, 24, big, big, big)
        entries.append(entry(name, b"x", size=2**32 - 1, length=2**32 - 1, offset=2**32 - 1, extra=extra))
    elif way == 8:  # the directory is said to be elsewhere
        wrong = (("size", 1), ("offset", 2**31), ("count", 0), ("size", 2**32 - 1), ("offset", 46), ("count", 0xFFFF))
        bench.try_archive(build_zip(bench.entries(), **dict([wrong[n // 12]])), SAME_OR_REFUSED)
        return
    elif way == 9:  # thousands of empty members, or extra fields of thousands of parts
        if random.random() < 0.5:
            entries = [*bench.entries(), *(entry(f"{k}", b"") for k in range(10_000))]
            expected = SAME
        else:
            extra = struct.pack("<HH", 0x9999, 0) * 16_000
            entries = [replace(e, extra=extra) for e in bench.entries()]
            expected = SAME
    elif way == 10:  # zips in zips, to be opened by programs that do
        inner = build_zip([Entry(name.encode(), zeros, 1 << 30, unpacked)])
        entries.append(entry(name, inner))
    else:  # what comes out is as large as the schema allows, and larger than it says
        limit = size + (1 << 16)
        content = bench.members[name] + bytes(random.choice([1, 1000, limit - size, limit]))
        entries.append(entry(name, content, size=random.choice([len(content), size])))
        expected = VALID_OR_REFUSED
    bench.try_archive(build_zip(entries), expected)


@kind(40)
def gzip_bombs(n: int, random: random.Random, bench: Bench) -> None:
    name = random.choice(list(bench.files))
    good, way = nifti(bench.volumes[name]), n % 8
    start = b"\x1f\x8b\x08\0\0\0\0\0\0\3"
    if way == 0:  # 20 GB of zeros behind a small volume, in one stream
        content = start + repeated(bytes(1 << 20), 20_000, before=good) + bytes(8)
    elif way == 1:  # the same, in many
        content = pack_gzip(good) + gzip.compress(bytes(1 << 22)) * random.choice([10, 5000])
    elif way == 2:  # the header promises more than there is
        shape = random.choice(
            [(32767, 32767, 32767), (2048, 2048, 2048), (800, 800, 400), (30000, 1, 1), (32767, 32767, 1)]
        )
        content = pack_gzip(nifti(bench.volumes[name], dim=(3, *shape, 1, 1, 1, 1)))
    elif way == 3:
        shape = random.choice([(1000, 1000, 250), (32767, 32767, 32767), (2000, 1000, 250)])
        content = nifti(bench.volumes[name], dim=(3, *shape, 1, 1, 1, 1))  # not compressed, and short
    elif way == 4:  # it promises much, and it comes
        big = nifti(np.zeros((1, 1, 1), np.uint8), dim=(3, 32767, 32767, 32, 1, 1, 1, 1))[:352]
        content = start + repeated(bytes(1 << 20), 20_000, before=big) + bytes(8)
    elif way == 5:  # voxels far behind the header, as far as can be said
        content = (
            start + repeated(bytes(1 << 20), 4000, before=nifti(bench.volumes[name], vox_offset=4e9)[:352]) + bytes(8)
        )
    elif way == 6:  # nothing at all, many times
        content = pack_gzip(b"") * 200_000 + random.choice([b"", pack_gzip(good)])
        bench.try_case({name: content}, SAME if content.endswith(pack_gzip(good)) else REFUSED, same_voxels=name)
        return
    else:  # an extension of the header that goes on and on; a name of the file of any length
        extension = struct.pack("<ii", 2**31 - 16, 6)
        content = start[:3] + b"\x08" + start[4:] + b"n" * 5_000_000 + b"\0" + pack_gzip(good)[10:]
        if n // 8 % 2:
            content = pack_gzip(good[:348] + b"\1\0\0\0" + extension + good[352:])
        bench.try_case({name: content}, VALID_OR_REFUSED)
        return
    bench.try_case({name: content}, REFUSED)


SHAPES: list[tuple[int, ...]] = [
    (),
    (0,),
    (8,),
    (16, 16),
    (8, 16),
    (7, 16, 16),
    (9, 16, 16),
    (16, 16, 8),
    (8, 16, 15),
    (1, 8, 16, 16),
    (8, 16, 16, 1),
    (0, 16, 16),
    (8, 0, 16),
    (2048,),
    (8, 256),
    (4, 32, 16),
]
TYPES = [
    "i1",
    "<i2",
    ">i2",
    "<f4",
    ">f8",
    "?",
    "<u2",
    ">u4",
    "<c8",
    "c16",
    "S1",
    "<U1",
    "<M8[s]",
    "m8[s]",
    "V3",
    "u1,u1",
    "f2",
    "g",
]
HEADERS = [
    "{'descr': (), 'fortran_order': False, 'shape': (8, 16, 16)}",
    "{'descr': [], 'fortran_order': False, 'shape': (8, 16, 16)}",
    "{'descr': [('', 'u1')], 'fortran_order': False, 'shape': (8, 16, 16)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (8, 16, 16)",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 100000)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-8, -16, 16)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (9223372036854775808, 2, 2)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296, 16)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (8.0, 16, 16)}",
    "{'descr': '|u1', 'fortran_order': 1, 'shape': (8, 16, 16)}",
    "{'descr': '|u1', 'shape': (8, 16, 16)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (8, 16, 16)}",
    "{'descr': '|V1000000000', 'fortran_order': False, 'shape': (8, 16, 16)}",
    "{'descr': '|S0', 'fortran_order': False, 'shape': (8, 16, 16)}",
    "__import__('os').mkdir('x')",
    "(" * 9000,
    "-" * 9000 + "1",
    "[" * 150 + "]" * 150,
    "1+" * 4500 + "1",
    "[1]" * 3000,
    "'" * 9001,
    "{",
    "",
    "\0",
    "x" * 60_000,
    "{'descr': '|u1'," * 100,
    "\x1b[2J",
    "'''\n\n\nx",
]


@kind(110)
def arrays_of_a_wrong_dtype_or_shape(n: int, random: random.Random, bench: Bench) -> None:
    name = bench.slices[0]
    stored, expected = bench.stored[0], REFUSED
    if n < len(HEADERS):
        content = npy_header(HEADERS[n], bytes(2048), random.choice([(1, 0), (2, 0), (3, 0)]))
    elif n < 50:
        shape = SHAPES[n % len(SHAPES)]
        content = as_npy(np.zeros(shape, np.uint8))
    elif n < 70:
        content = as_npy(np.zeros(stored.shape, TYPES[n % len(TYPES)]))
    elif n < 90:
        good = as_npy(stored)
        changed = stored.copy()
        changed[random.randrange(4, 8), random.randrange(16)] = random.choice([0, 1, 254, 255, 128])
        header, version = good[10 : good.index(b"\n")].decode().rstrip(), (n % 3 + 1, 0)
        content = [
            good[: random.randrange(len(good))],
            b"\x93NUMPY" + bytes([random.choice([0, 4, 9, 255]), 0]) + good[8:],
            good.replace(b"NUMPY", b"NUMPI"),
            as_npy(changed),
            as_npy(np.asfortranarray(stored)),  # another order of the bytes, the same array
            npy_header(header + " " * random.randrange(3000), stored.tobytes(), version),
            npy_header(header.replace("|u1", "<u1"), stored.tobytes(), version),
            good + b"more",
        ][n % 8]
        expected = (REFUSED, REFUSED, REFUSED, VALID_OR_REFUSED, SAME, SAME, SAME, SAME_OR_REFUSED)[n % 8]
    else:
        spoil_dtype(n, random, bench)
        return
    bench.try_archive(build_zip(bench.entries(**{name: content})), expected)


def spoil_dtype(n: int, random: random.Random, bench: Bench) -> None:
    """NIfTI files of other types."""
    name = random.choice(list(bench.files))
    voxels = bench.volumes[name]
    types = ["complex64", "complex128", "float32", "float64", "int8", "uint16", "int32", "uint32", "int64", "uint64"]
    dtype = types[n % len(types)]
    if n % 7 == 6:
        rgb = np.dtype([(c, "u1") for c in "RGBA"[: 3 + n % 2]])
        bench.try_case({name: nifti(voxels.astype("u1").astype(rgb))}, REFUSED)
    elif dtype.startswith("complex"):
        bench.try_case({name: nifti(voxels.astype(dtype))}, REFUSED)
    elif dtype == "int8":
        bench.try_case({name: nifti((voxels % 5).astype(dtype))}, VALID_OR_REFUSED)
    else:
        bench.try_case({name: nifti(voxels.astype(dtype), order="<>"[n // 10 % 2])}, SAME, same_voxels=name)


class Trap:
    """What leaves a mark when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@kind(45)
def pickled_arrays(n: int, random: random.Random, bench: Bench) -> None:
    trap = pickle.dumps(Trap(bench.marker), protocol=n % 6)
    array = np.empty(random.choice([(), (1,), (8, 16, 16)]), object)
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': {array.shape}, }}"
    npz = io.BytesIO()
    np.savez(npz, bench.stored[0])
    fields = "{'descr': [('a', 'O')], 'fortran_order': False, 'shape': (1,)}"
    member = [
        npy_header(header, trap),
        trap,
        npz.getvalue(),
        npy_header(fields, trap),
        as_npy(np.array([{"a": 1}], object)),
    ][n % 5]
    way, name = n // 5 % 9, random.choice(list(bench.files))
    if way < 4:
        bench.try_archive(bench.with_slice(member, random), REFUSED)
    elif way == 4:
        bench.try_archive(bench.with_index(random.choice([trap, member])), REFUSED)
    elif way == 5:
        bench.try_archive(random.choice([trap, member, npz.getvalue()]), REFUSED)
    elif way == 6:  # as PyTorch writes checkpoints
        bench.try_archive(build_zip([entry("archive/data.pkl", trap), entry("archive/version", b"3")]), REFUSED)
    elif way == 7:
        bench.try_case({name: random.choice([trap, pack_gzip(trap), pack_gzip(member)])}, REFUSED)
    else:  # an extension of NIfTI that holds a pickle, which nobody opens, or CIFTI's XML
        good = nifti(bench.volumes[name])
        note = (trap if n % 2 else b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><CIFTI>&a;').ljust(504, b"\0")
        content = good[:348] + b"\1\0\0\0" + struct.pack("<ii", 512, 16 if n % 2 else 32) + note + good[352:]
        content = content[:108] + struct.pack("<f", 352 + 512) + content[112:]
        bench.try_case({name: content}, SAME if n % 2 else SAME_OR_REFUSED, same_voxels=name)


@kind(75)
def NaN_and_infinities(n: int, random: random.Random, bench: Bench) -> None:
    bad = (NAN, INF, -INF)[n % 3]
    name, way = random.choice(list(bench.files)), n // 3 % 5
    if way in (0, 1):
        voxels = bench.volumes[name].astype(("float32", "float64")[n % 2])
        if way == 0:
            voxels.flat[random.sample(range(voxels.size), random.choice([1, 5, 7000]))] = bad
        else:
            voxels[...] = random.choice([bad, 1e300])
        expected = VALID_OR_REFUSED if bad is NAN and way == 0 else REFUSED  # outside the head NaN is background
        bench.try_case({name: nifti(voxels, order=random.choice("<>"))}, expected)
    elif way == 2:
        field = random.choice(["scl_slope", "scl_inter", "vox_offset", "pixdim", "srow", "quatern"])
        fields: dict[str, Any] = {field: bad}
        if field in ("pixdim", "srow", "quatern"):
            values = {"pixdim": [1.0] * 8, "srow": [-1.0, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0], "quatern": [0.0] * 6}[
                field
            ]
            values[random.randrange(len(values))] = bad
            fields = {field: tuple(values), "sform_code": int(field == "srow"), "qform_code": int(field == "quatern")}
        bench.try_case({name: nifti(bench.volumes[name], **fields)}, VALID_OR_REFUSED)
    else:
        index = bench.index()
        path = random.choice([path for path in nodes(index) if type(find(index, path)) is float])
        put(index, path, "@")
        text = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400, "1" + "0" * 5000)[n // 3 % 7]
        bench.try_archive(bench.with_index(json.dumps(index).replace('"@"', text).encode()), REFUSED)


def find(tree: Any, path: tuple) -> Any:
    for key in path:
        tree = tree[key]
    return tree


@kind(90)
def zero_sized_and_5_D_volumes(n: int, random: random.Random, bench: Bench) -> None:
    name, way = random.choice(list(bench.files)), n % 9
    voxels = bench.volumes[name]
    l, p, s = SHAPE
    if way == 0:  # the header alone says so
        count = random.choice([0, 1, 2, 4, 5, 6, 7, 8, -1, 100, 32767])
        ones = 4 <= count <= 7  # behind the third, they are as good as not there
        bench.try_case({name: nifti(voxels, dim=(count, l, p, s, 1, 1, 1, 1))}, SAME_OR_REFUSED if ones else REFUSED)
    elif way == 1:
        dim = [3, l, p, s, 1, 1, 1, 1]
        dim[random.randrange(1, 4)] = random.choice([0, -1, -32768, 32767])
        bench.try_case({name: nifti(voxels, dim=tuple(dim))}, REFUSED)
    elif way == 2:  # really of another number of dimensions
        shape = random.choice([(l,), (l, p), (l, p, s, 2), (l, p, s, 1, 3), (l, p, s, 1, 1, 1, 2), (1, 1, 1, l, p)])
        bench.try_case({name: nifti(np.resize(voxels, shape))}, REFUSED)
    elif way == 3:
        shape = [l, p, s, 1, 1][: random.choice([3, 4, 5])]
        shape[random.randrange(3)] = 0
        bench.try_case(
            {name: nifti(np.zeros(shape, np.int16), dim=(len(shape), *shape, *[1] * (7 - len(shape))))}, REFUSED
        )
    elif way == 4:  # of another shape than the rest
        shape = random.choice([(s, p, l), (p, l, s), (l, p, s - 1), (l + 1, p, s), (1, 1, 1), (l * p * s, 1, 1)])
        bench.try_case({name: nifti(np.resize(voxels, shape))}, REFUSED)
    elif way == 5:  # all of one odd shape: a single slice, column or voxel is a volume
        shape = random.choice(
            [(1, 1, 1), (1, p, s), (l, 1, s), (l, p, 1), (1, 1, s), (2, 2, 2), (300, 2, 3), (1, 1, 700)]
        )
        files = {kind: nifti(np.resize(volume, shape)) for kind, volume in bench.volumes.items()}
        bench.try_case(files, VALID_OR_REFUSED)
    elif way == 6:  # all the same, or with nothing that could be a head
        value = random.choice([0, 1, -1, 32767, -32768])
        files = {kind: nifti(np.full(SHAPE, value, np.int16)) for kind in bench.volumes if kind != "seg"}
        bench.try_case(files, REFUSED)
    elif way == 7:  # no orientation: directions that are one, or of no length, or of a length beyond all measure
        rows = [-1.0, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0]
        rows = {
            0: [0.0] * 12,
            1: [1.0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0],
            2: [1e6, 1e6, 0, 0, 0, 1e-9, 0, 0, 0, 0, 1, 0],
            3: [v * 1e30 for v in rows],
            4: [v * 1e-30 for v in rows],
            5: [v * 1e38 for v in rows],
            6: [1e12, 1e12, 0, 0, 1e12, 1e12 * (1 + 2e-7), 0, 0, 0, 0, 1e12, 0],
            7: [1e-3, 0, 0, 0, 0, 1e4, 0, 0, 0, 0, 1, 0],
            8: [1e15, 1e15, 1e15, 0, 0, 1e-6, 0, 0, 0, 0, 1e-6, 0],
            9: [v * 0.9 + 0.1 for v in rows],
        }[n // 9]
        files = {kind: nifti(volume, srow=tuple(rows)) for kind, volume in bench.volumes.items()}
        bench.try_case(files if n % 2 else {name: files[name]}, VALID_OR_REFUSED)
    else:  # in an archive
        index = bench.index()
        volume = index["volumes"]["patient0"]
        change = random.choice(
            [
                {"shape": [0, 20, 16]},
                {"shape": [24, -20, 16]},
                {"shape": [24, 20, 16, 1]},
                {"shape": []},
                {"affine": []},
                {"affine": [[]]},
                {"affine": [[1.0] * 3] * 4},
                {"pixel": 0.0},
                {"pixel": -1},
                {"windows": {}},
                {"windows": {name: [2.0, 1.0] for name in BRATS.contrasts}},
            ]
        )
        volume.update(change)
        bench.try_archive(bench.with_index(index), REFUSED)


@kind(40)
def broken_split_files(n: int, random: random.Random, bench: Bench) -> None:
    names = [f"Brats18_{k}_1" for k in "ABC"]
    good = {"train": names[:2], "test": names[2:]}
    text = json.dumps(good)
    deep = (900, 960, 990, 10_000, 100_000)[n % 5]
    if n < 16:
        texts = [
            "",
            "[]",
            "null",
            "{}",
            text[:-1],
            text + "]",
            "\0",
            "\ufeff" + text,
            '{"train": NaN, "test": []}',
            "[" * deep,
            f'{{"train": {"[" * deep}{"]" * deep}, "test": []}}',
            '{"a":' * deep + "1" + "}" * deep,
            "9" * 5000,
            text.replace(names[0], "\\ud800"),
            f'{{"train": {10**400}, "test": [1e999]}}',
            text[:-1] + ', "test": []}',
        ][n]
    elif n < 36:
        value = random.choice([v for v in HOSTILE_VALUES if v not in ([], {})])
        put(good, random.choice([path for path in nodes(good) if len(path) == 1 + n % 2]), value)
        texts = json.dumps(good)
    else:
        names[0] = random.choice(BAD_NAMES + [names[1], names[2]])
        texts = json.dumps({"train": names[:2], "test": names[2:]})
    with bench.place() as folder:
        for k in "ABC":
            bench.write_case(folder / "source", f"Brats18_{k}_1", {})
        path = folder / "split.json"
        path.write_text(texts, encoding="utf-8")
        if n % 4 == 3 and n > 16:
            path.write_bytes(texts.encode("utf-16"))
        dest = folder / "new"
        options = (
            "--source",
            folder / "source",
            "--dest",
            dest,
            "--resolution",
            16,
            "--workers",
            1,
            "--split-file",
            path,
        )
        code, words = bench.call("convert", *options)
        bench.judge(words if code else None, REFUSED, path)
        require(not dest.exists(), "left behind:", dest)


@kind(60)
def labels_that_are_no_whole_numbers(n: int, random: random.Random, bench: Bench) -> None:
    labels, way = bench.volumes["seg"], n % 5
    place = tuple(random.randrange(k) for k in SHAPE)
    if way in (0, 1):
        changed = labels.astype(("float32", "float64")[way])
        changed[place] = random.choice([0.5, 1.5, 3.999, -0.25, 1e-3, 4.0001, 0.9997])
        bench.try_case({"seg": nifti(changed)}, REFUSED)
    elif way == 2:
        dtype = random.choice(["int16", "int32", "float32", "int64", "uint16"])
        changed = labels.astype(dtype)
        value = random.choice([3, 5, 100, 255, 256, 32767] + ([-1, -32768] if dtype != "uint16" else []))
        changed[place] = value
        bench.try_case({"seg": nifti(changed)}, REFUSED)
    elif way == 3:  # scaled by the header
        slope, inter = random.choice(
            [(0.5, 0), (1, 0.5), (1, 1), (-1, 0), (1e-30, 0), (3, 0), (1e30, 0), (1, 0), (2, 0), (1e38, 1e38)]
        )
        bench.try_case(
            {"seg": nifti(labels, scl_slope=slope, scl_inter=inter)}, SAME if (slope, inter) == (1, 0) else REFUSED
        )
    elif n < 30:  # all wrong: another file in its place
        changed = random.choice([bench.volumes["t1"], np.full(SHAPE, 7, np.uint8), np.full(SHAPE, 0.1, np.float32)])
        bench.try_case({"seg": nifti(changed)}, REFUSED)
    else:  # label values and class labels of an archive
        index = bench.index()
        change = random.randrange(5)
        if change == 0:
            index["labels"][0][1] = random.choice([-1, 2, 10**9, 1.5, "0", None, True])
        elif change == 1:
            index["label_names"], index["labels"][0][1] = None, random.choice([10**9, 2**40, -5, 70_000])
        elif change == 2:
            index["schema"]["classes"][0]["value"] = random.choice([0, 2, 1.0, "1", None, 2**70])
        elif change == 3:
            index["slices"][0]["index"] = random.choice([-1, 1.0, "1", 2**70])
        else:
            index["slices"][0]["seed"] = random.choice([-1, 0.5, "x", 2**64])
        bench.try_archive(bench.with_index(index), REFUSED)


# --- the process that runs the cases of a kind ----------------------------------------------------------------------


def run_kind(name: str, folder: Path) -> dict[str, Any]:
    """Run all cases of a kind within the limits. Returns what became of them."""
    function, count = KINDS[name]
    bench = Bench(folder)
    started, before = time.perf_counter(), memory("VmSize")
    held = memory("VmRSS")
    if before:
        resource.setrlimit(resource.RLIMIT_AS, (before + MEMORY, resource.RLIM_INFINITY))
    failures, slowest = [], (0.0, -1)
    for n in range(count):
        bench.n = n
        faulthandler.dump_traceback_later(HANGS, exit=True)
        print(f"{name} {n}", file=sys.stderr)
        begun = time.process_time()
        try:
            function(n, random.Random(f"{name} {n}"), bench)
        except Wrong as error:
            failures.append(f"{name} {n}: {error}")
        except BaseException:
            failures.append(f"{name} {n}: {traceback.format_exc()[-3000:]}")
        slowest = max(slowest, (time.process_time() - begun, n))
        if slowest[0] > SECONDS and slowest[1] == n:
            failures.append(f"{name} {n}: took {slowest[0]:.1f} s")
    faulthandler.cancel_dump_traceback_later()
    return {
        "cases": count,
        "refused": bench.refused,
        "read": bench.read,
        "seconds": round(time.perf_counter() - started, 2),
        "slowest": [round(slowest[0], 2), slowest[1]],
        "peak_mb": (memory("VmHWM") - held) >> 20,
        "failures": failures,
    }


def memory(field: str) -> int:
    """Bytes of this process, by Linux; 0 elsewhere."""
    with contextlib.suppress(OSError):
        found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) << 10 if found else 0
    return 0


# --- tests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_refused_or_read_correctly(name, tmp_path):
    # One arena: glibc would reserve more of the limited address space for other threads than they ever use.
    limits = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    environment = {**os.environ, **limits, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, __file__, name, tmp_path / "cases"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-5000:]
    report = json.loads(process.stdout)
    failures = report.pop("failures")
    print(report)
    assert not failures, "\n\n".join([f"{len(failures)} of {report['cases']} cases:", *failures[:20]])


def test_there_are_cases_enough():
    counts = [count for _, count in KINDS.values()]
    assert sum(counts) >= 500 and min(counts) >= 25


def test_a_trap_would_be_noticed(tmp_path):
    """If anything unpickled what `pickled_arrays` gives it, there would be a folder."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


LINKS = (lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink(path, path))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, *LINKS], ids=["pipe", "folder", "device", "link to itself"])
def test_what_is_no_file_is_refused_at_once(make, tmp_path):
    path = tmp_path / "x.zip"
    make(path)
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 2 and f"error: {path}" in result.output


# --- a full disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def release(tmp_path):
    bench = Bench(tmp_path / "bench")
    for k in "ABC":
        bench.write_case(tmp_path / "source", f"Brats18_{k}_1", {})
    return tmp_path / "source"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_convert(source: Path, dest: Path) -> tuple[int, list[str]]:
    """Exit code and error messages of a conversion that replaces what is there."""
    arguments = [
        "convert",
        "--source",
        source,
        "--dest",
        dest,
        "--resolution",
        64,
        "--workers",
        1,
        "--slices",
        "all",
        "--force",
    ]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, re.findall(r"^error: .*", result.output.replace("\r", "\n"), re.MULTILINE)


def fill(folder: Path, free: int) -> None:
    """Leave so many bytes of a disk, or a page less."""
    left = shutil.disk_usage(folder).free - free
    (folder / "other").write_bytes(bytes(max(0, left)))


@pytest.mark.parametrize("free", [0, 4096, 8192, 16384, 40960])
def test_a_full_disk_leaves_the_archives_that_are_there(small_disk, release, free):
    write_archive(small_disk / "all.zip")
    (small_disk / "folder").mkdir()
    for name in ("train.zip", "test.zip", "split.json"):
        shutil.copy(small_disk / "all.zip", small_disk / "folder" / name)
    fill(small_disk, free)
    before = contents(small_disk)
    for dest in (small_disk / "all.zip", small_disk / "folder"):
        code, errors = run_convert(release, dest)
        assert code == 2 and len(errors) == 1, errors
        assert str(small_disk) in errors[0] and "No space left" in errors[0] and "free some space" in errors[0]
        kept = {name for name in contents(small_disk) if ".converting" in name}  # cases that are cut already
        assert {name: value for name, value in contents(small_disk).items() if name not in kept} == before
        assert not [name for name in kept if name.endswith(".part")]


@pytest.mark.parametrize("free", [0, 4096, 12288])
def test_a_full_disk_while_slices_are_generated(small_disk, free):
    path = write_archive(small_disk / "x.zip")
    fill(small_disk, free)
    before = contents(small_disk)
    with pytest.raises(OSError) as caught:
        write_archive(path, 200)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert contents(small_disk) == before


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_last_moment(release, tmp_path, monkeypatch, function):
    """As where room is made only when a file is closed: a quota, a network's disk."""
    dest = write_archive(tmp_path / "x.zip")
    before = dest.read_bytes()
    real = getattr(os, function)

    def full(what, *arguments):
        name = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)
        if Path(name).name.startswith(".x.zip."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(what, *arguments)

    monkeypatch.setattr(os, function, full)
    code, errors = run_convert(release, dest)
    assert code == 2 and len(errors) == 1 and str(dest) in errors[0] and "free some space" in errors[0]
    assert dest.read_bytes() == before
    assert not [path for path in tmp_path.rglob("*.part")]


if __name__ == "__main__":
    print(json.dumps(run_kind(sys.argv[1], Path(sys.argv[2]))))

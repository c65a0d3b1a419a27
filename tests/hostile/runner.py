"""The bench on which broken and hostile files are tried: limits, good files to spoil, and what may come of a case.

A test file declares its cases with `Cases`. They run in a process of their own, whose memory is limited. A failure
names the way in which the file was spoiled and the number of the case. To run one case alone, here to its traceback:

    python tests/hostile/runner.py test_hostile_zips "zip bomb: the directory promises a good size" 3

Without the number, all cases of that way run; without both, all of the file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a program, it finds the tests' modules and the project's by itself
    sys.path += map(str, (Path(__file__).resolve().parents[1], Path(__file__).resolve().parents[2]))

import numpy as np
from click.testing import CliRunner

import dataset_tool
from dnnlib.errors import UserError
from forge import Entry, build_zip, entry, nifti, pack_gzip
from helpers.drawn import draw_small_head, write_full_archive
from slices.archive.format import INDEX
from slices.archive.reader import ArchiveReader
from slices.nifti import read_nifti

MEMORY = 300 << 20  # bytes that reading may take, besides what the program itself takes
SECONDS = 5  # of the processor's time that a case may take
HANGS = 40  # seconds after which a case is taken to hang

# What must become of a spoiled file. If a checksum covers what was changed, only the original content may be read.
# Otherwise, what is read must satisfy the schema.
REFUSED, SAME, SAME_OR_REFUSED, VALID_OR_REFUSED = "refused", "same", "same or refused", "valid or refused"

Spoil = Callable[[Any, random.Random, int], None]  # (bench, random numbers of this case, number of the case)


# --- cases and the process that runs them ---------------------------------------------------------------------------


class Cases:
    """The cases of a test file: ways to spoil a file, each with a number of cases."""

    def __init__(self, file: str, bench: Callable[[Path], Any] | None = None) -> None:
        """bench: makes the good files in a folder and tries the spoiled ones; a `Bench` by default."""
        self.module, self.bench = Path(file).stem, bench or Bench
        self.ways: dict[str, tuple[Spoil, int]] = {}

    def way(self, kind: str, cases: int = 1) -> Callable[[Spoil], Spoil]:
        """Decorate a function that spoils a file and tries it; it is called `cases` times."""

        def register(function: Spoil) -> Spoil:
            self.ways[f"{kind}: {function.__name__.replace('_', ' ')}"] = function, cases
            return function

        return register

    def check(self, way: str) -> None:
        """Fail if a case of this way failed. The first call runs all cases of the test file."""
        found = {k: run_all(self.module)[way, k] for k in range(self.ways[way][1])}
        failures = [f"{way} {k}: {what}" for k, what in found.items() if what != OK]
        alone = f'To run one alone: python tests/hostile/runner.py {self.module} "{way}" NUMBER'
        assert not failures, "\n\n".join([f"{len(failures)} of {len(found)} cases failed. {alone}", *failures[:20]])


OK = "as it must be"


_BEGINS = "case begins: "  # on stderr, before the way and the number


class _Results(dict[tuple[str, int], str]):
    """(way, number) -> OK or what went wrong. A case that did not come to its end is told by how the process ended."""

    last = ""  # way and number of the case that began last
    end = ""  # how the process ended, and what it wrote meanwhile

    def __missing__(self, case: tuple[str, int]) -> str:
        if self.last == f"{case[0]} {case[1]}":
            return f"the process ended: {self.end}"
        return f"not run, as the process ended in {self.last or 'its start: ' + self.end}"


@functools.cache
def run_all(module: str) -> _Results:
    """Run all cases of a test file in a process of their own."""
    # One arena: glibc would reserve more of the limited address space for other threads than they ever use.
    limits = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, __file__, module]
    process = subprocess.run(command, env={**os.environ, **limits}, capture_output=True, text=True)
    results = _Results({(way, k): found for way, k, found in map(json.loads, process.stdout.splitlines())})
    after = process.stderr.rpartition(_BEGINS)[2]
    if _BEGINS in process.stderr:
        results.last, _, after = after.partition("\n")
    results.end = f"exit status {process.returncode}\n{after[-5000:]}"
    return results


def main(module: str, way: str | None = None, number: str | None = None) -> None:
    """Run cases of a test file within the limits. Prints a line for each; if all are run, as JSON for `run_all`."""
    cases = importlib.import_module(module).CASES
    with tempfile.TemporaryDirectory() as folder:
        bench = cases.bench(Path(folder))
        if before := memory("VmSize"):
            resource.setrlimit(resource.RLIMIT_AS, (before + MEMORY, resource.RLIM_INFINITY))
        for name, (function, count) in cases.ways.items():
            for k in range(count):
                bench.n += 1
                if way in (None, name) and number in (None, str(k)):
                    print(f"{_BEGINS}{name} {k}", file=sys.stderr, flush=True)
                    found = run_case(function, bench, random.Random(f"{name} {k}"), k)
                    print(json.dumps([name, k, found]) if way is None else f"{name} {k}: {found}", flush=True)


def run_case(function: Spoil, bench: Bench, random: random.Random, k: int) -> str:
    """Run a case. Returns OK or what went wrong."""
    faulthandler.dump_traceback_later(HANGS, exit=True)
    begun = time.process_time()
    try:
        function(bench, random, k)
    except Wrong as error:
        return str(error)
    except BaseException:
        return traceback.format_exc()[-3000:]
    finally:
        faulthandler.cancel_dump_traceback_later()
    took = time.process_time() - begun
    return OK if took <= SECONDS else f"took {took:.1f} s"


def memory(field: str) -> int:
    """Bytes of this process, by Linux; 0 elsewhere."""
    with contextlib.suppress(OSError):
        found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) << 10 if found else 0
    return 0


# --- trying a file --------------------------------------------------------------------------------------------------


class Wrong(AssertionError):
    """A case did not end as it must."""


def require(condition: Any, *words: object) -> None:
    if not condition:
        raise Wrong(" ".join(map(str, words)))


@dataclass(frozen=True)
class _Conversion:
    """A way to convert a spoiled case. Cases take them by turns."""

    options: tuple[str, ...] = ()
    dest: str = "x.zip"
    over_an_archive: bool = False  # that is there already
    beside_a_good_case: bool = False


_CONVERSIONS = (
    _Conversion(),
    _Conversion(("--force",), over_an_archive=True),
    _Conversion(dest="new/deep/x.zip"),
    _Conversion(dest="new", beside_a_good_case=True),
    _Conversion(("--on-error", "skip"), beside_a_good_case=True),
)


class Bench:
    """Good files to be spoiled, and what must hold for a spoiled one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker = folder / "executed"  # made by code that a file contains, if it is ever run
        self.n = 0  # number of the case among all of a test file
        path = write_full_archive(folder / "good.zip")
        self.archive = path.read_bytes()
        with zipfile.ZipFile(path) as file:
            self.members = {name: file.read(name) for name in file.namelist()}
            self.places = {info.filename: info.header_offset for info in file.infolist()}
            self.directory = file.start_dir
        self.slices = [name for name in self.members if name != INDEX]
        reader = ArchiveReader(path)
        self.info, self.stored = reader.info, [reader.read(i) for i in range(len(reader))]
        path.unlink()
        self.volumes = draw_small_head()
        self.files = {name: pack_gzip(nifti(voxels)) for name, voxels in self.volumes.items()}

    # --- pieces of the good archive ---

    def index(self) -> Any:
        """The content of dataset.json, to be changed."""
        return json.loads(self.members[INDEX])

    def entries(self, **changed: bytes) -> list[Entry]:
        """The members of the good archive, those in `changed` with another content."""
        return [entry(name, content) for name, content in (self.members | changed).items()]

    def with_index(self, index: Any) -> bytes:
        """The good archive with another dataset.json: bytes, or values for JSON."""
        text = index if isinstance(index, bytes) else json.dumps(index).encode()
        return build_zip(self.entries(**{INDEX: text}))

    def with_slice(self, name: str, content: bytes) -> bytes:
        """The good archive with another content of one member."""
        return build_zip(self.entries(**{name: content}))

    # --- what must hold in every case ---

    @contextlib.contextmanager
    def place(self) -> Iterator[Path]:
        """Yield an empty folder. Nothing may appear beside it."""
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
        """Run dataset_tool.py. Returns its exit code and its output, or its error message if it refused."""
        result = CliRunner().invoke(dataset_tool.main, [str(a) for a in arguments])
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
        """Check the outcome and its message.

        message: why the file was refused; None if it was read. names: the message must contain one of them.
        """
        if message is None:
            require(expected != REFUSED, "was read, but must be refused")
            return
        require(expected != SAME, "was refused, but must be read:", message)
        require(any(str(name) in message for name in names), f"names none of {names}:", message[:500])
        require(len(message) < 2000 and message.isprintable(), "no message for a terminal:", repr(message[:2000]))

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
                self._run_program(path, folder / "new", message)

    def _run_program(self, path: Path, dest: Path, message: str | None) -> None:
        """Give an archive to one of the programs, by turns. message: why it can't be read, if so."""
        program = self.n % 7
        if program in (0, 1):
            code, words = self.call("inspect", path, *(["--out", dest / "x.png"] if program else []))
            require(code == 2 * (message is not None), "inspect judges otherwise:", code, words)
        elif program == 2:  # it copies slices as they are packed
            code, words = self.call("subset", path, "--dest", dest / "x.zip", "--patients", 1)
            if code == 0:
                copy = ArchiveReader(dest / "x.zip")
                require(all(copy.read(i) is not None for i in range(len(copy))), "a copy can't be read")
        elif program in (3, 4):
            code, words = self.call("export", path, "--dest", dest, "--format", ("nifti", "png")[program - 3])
        else:
            return
        if code:
            require(str(path) in words, "the message does not name the file:", words)
            require(program in (0, 1) or not dest.exists(), "left behind:", list(dest.parent.rglob("*")))
            require(not list(dest.glob("*")), "left behind:", list(dest.glob("*")))

    # --- cases of a release ---

    def write_case(self, source: Path, name: str, files: dict[str, bytes | None]) -> Path:
        """Write the files of a case as BraTS 2018 has them, with `files` in place of the good ones; None: missing."""
        folder = source / "HGG" / name
        folder.mkdir(parents=True)
        for contrast, content in (self.files | files).items():
            if content is not None:
                suffix = ".nii.gz" if content[:2] == b"\x1f\x8b" or contrast not in files else ".nii"
                (folder / f"{name}_{contrast}{suffix}").write_bytes(content)
        return folder

    def try_case(self, files: dict[str, bytes | None], expected: str, *, same_voxels: str | None = None) -> None:
        """Convert a case in which `files` are spoiled.

        same_voxels: name of a spoiled file that must have the voxels of the good one, if it can be read.
        """
        with self.place() as folder:
            source, name = folder / "source", f"Brats18_X_{self.n}_1"
            case = self.write_case(source, name, files)
            unreadable = []
            for path in sorted(case.iterdir()):
                same = f"{name}_{same_voxels}." in path.name
                try:
                    found = read_nifti(path)
                except UserError as error:
                    require(str(path) in str(error), "does not name the file:", error)
                    unreadable.append(path)
                else:
                    require(found.voxels.ndim == 3 and found.voxels.size, "an odd shape", found.voxels.shape)
                    require(np.isfinite(found.affine).all(), "an odd affine", found.affine)
                    if same and same_voxels:
                        require(np.array_equal(found.voxels, self.volumes[same_voxels]), "other voxels were read")
                        require(np.array_equal(found.affine, np.diag((-1, -1, 1, 1))), "another affine was read")
            conversion = _CONVERSIONS[self.n % len(_CONVERSIONS)]
            if conversion.beside_a_good_case:
                self.write_case(source, "Brats18_Y_0_1", {})
            self._convert(folder, case, conversion, expected, unreadable)

    def _convert(
        self, folder: Path, case: Path, conversion: _Conversion, expected: str, unreadable: list[Path]
    ) -> None:
        """Convert the case, and check what there is afterwards. unreadable: its files that can't be read."""
        source, dest = folder / "source", folder / conversion.dest
        if conversion.over_an_archive:
            dest.write_bytes(self.archive)
        before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
        options = ("--resolution", self.info.resolution, "--workers", 1, "--slices", ("tumor", "all")[self.n % 2])
        code, words = self.call("convert", "--source", source, "--dest", dest, *options, *conversion.options)
        if "skip" in conversion.options:  # the good case is there in any case
            require(code == 0, "one bad case is not skipped:", words)
            patients = self._check(dest)
            left_out = re.findall(r"^left out: (.*)", words, re.MULTILINE)
            self.judge(None if case.name in patients else left_out[0], expected, *unreadable or [case.name])
            require(not unreadable or case.name not in patients, "read after all", unreadable)
            return
        self.judge(words if code else None, expected, *unreadable or [source])
        require(code or not unreadable, "converted, but a file is unreadable:", unreadable)
        if code == 0:
            for path in [dest] if dest.suffix == ".zip" else [dest / "train.zip", dest / "test.zip"]:
                self._check(path)
            return
        after = sorted(path.relative_to(folder) for path in folder.rglob("*"))
        if "are kept in" in words or conversion.dest == "new":
            # Cases that are cut are kept for the next call. Nothing else may be there.
            after = [path for path in after if path.parts[0] != "new" or ".converting" not in path.parts]
            require(after in (before, before + [Path("new")], sorted([*before, Path("new")])), "left behind:", after)
        else:
            require(after == before, "left behind:", set(after) - set(before))
        require(not conversion.over_an_archive or dest.read_bytes() == self.archive, "the old archive changed")

    def _check(self, path: Path) -> list[str]:
        """Check that an archive is there and whole. Returns its patients."""
        reader = ArchiveReader(path)
        for i in range(len(reader)):
            reader.read_checked(i)
        require(not list(path.parent.glob(".*")), "left behind:", list(path.parent.glob(".*")))
        return reader.info.patients


if __name__ == "__main__":
    import runner  # the test files register their cases with the module of this name, not with the program

    runner.main(*sys.argv[1:])

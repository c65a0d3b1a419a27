"""Compiled operators: built on first use, then loaded. Where that can't be, the plain PyTorch of `reference` serves."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import math
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dnnlib.errors import UserError
from dnnlib.files import sha256, write_bytes
from dnnlib.system import PLAIN, distrust

CSRC = Path(__file__).parent / "csrc"
SWITCH = "STYLEGAN2_MR_OPS"  # environment variable: reference or rebuild


class Unavailable(Exception):
    """Why there is no library; the message says what would do."""


@dataclass(frozen=True)
class Status:
    """What became of a library in this process."""

    file: Path | None = None  # what is loaded
    seconds: float = 0  # that its build took; 0 if it was there already
    tools: tuple[str, ...] = ()  # that it is built with
    error: str | None = None  # why none is loaded


@dataclass(frozen=True)
class Recipe:
    """How a library is built on this machine."""

    flags: tuple[str, ...]  # of the C++ compiler
    macros: str  # what it defines, given these flags
    tools: tuple[str, ...]  # that do the work, with their versions
    environment: dict[str, str]  # for the time of the build
    cuda_home: Path | None


@dataclass(frozen=True)
class Library:
    """The operators for one type of device."""

    name: str
    folder: Path  # of sources and headers
    sources: tuple[str, ...]  # their paths below it; those ending in .cu make it a CUDA library
    flags: tuple[str, ...]  # of the C++ compiler
    cuda_flags: tuple[str, ...] = ()  # of nvcc

    @property
    def _is_cuda(self) -> bool:
        return any(source.endswith(".cu") for source in self.sources)

    def load(self, rebuild: bool = False) -> Status:
        """Load the library, building it first unless its file is there. Raises Unavailable.

        A build that failed is remembered on disk, and not tried again before sources or tools change. rebuild: build
        even so.
        """
        recipe = self._recipe()
        folder = _root() / f"stylegan2_mr_{self.name}_{self._key(recipe)}"
        file, failure = folder / "native.so", folder / "failure.txt"
        asked = time.time()

        def outdated(path: Path) -> bool:  # what another process made while this one waited is new enough
            return not path.exists() or (rebuild and path.stat().st_mtime < asked)

        try:
            if outdated(file):
                if not shutil.which("ninja", path=recipe.environment["PATH"]):
                    raise Unavailable("ninja is missing: pip install ninja")
                for missing in [path for path in (folder, *folder.parents) if not path.exists()][::-1]:
                    with contextlib.suppress(FileExistsError):  # another process was faster
                        missing.mkdir(0o755)  # whatever the umask: where others can write, nothing is loaded
            _require_own(folder)
            if outdated(file):
                with _locked(folder.with_suffix(".lock"), f"another process to build native operators for {self.name}"):
                    if outdated(file) and outdated(failure):
                        return self._build(recipe, folder, file, failure)
            if not file.exists():
                raise Unavailable(f"their build failed before, as told in {failure}. {_retry(folder)}")
            _refuse_distrusted(file, os.lstat(file), stat.S_ISREG)
        except OSError as error:
            raise Unavailable(
                f"{error.filename or folder}: {error.strerror}. Set TORCH_EXTENSIONS_DIR to a folder on a local disk "
                "that you may write to"
            ) from None
        try:
            torch.ops.load_library(file)
        except OSError as error:
            raise Unavailable(f"{file} does not load ({_describe(error)}). {_retry(folder)}") from None
        return Status(file, tools=recipe.tools)

    def _build(self, recipe: Recipe, folder: Path, file: Path, failure: Path) -> Status:
        """Build and load. Only a library that has been loaded gets its name, and a build that was killed has none."""
        _say(f"building native operators for {self.name} (once, about a minute) ...")
        begun = time.monotonic()
        for leftover in folder.glob("build-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="build-", dir=folder, ignore_cleanup_errors=True) as workplace:
            try:
                self._compile_and_load(recipe, workplace)
            except Exception as error:  # whatever it is, the reference can do without
                log = _describe(error)
                write_bytes(folder / "build.log", log.encode("utf-8", PLAIN))
                message = f"their build failed:\n{_explain(log)}\nAll of it: {folder / 'build.log'}"
                if not PASSING.search(log):
                    write_bytes(failure, message.encode("utf-8", PLAIN))
                    message = f"{message}\n{_retry(folder)}"
                raise Unavailable(message) from None
            (built,) = Path(workplace).glob("*.so")
            built.chmod(0o755)
            os.replace(built, file)
        failure.unlink(missing_ok=True)
        seconds = time.monotonic() - begun
        _say(f"native operators for {self.name} built in {seconds:.0f} s")
        return Status(file, seconds, recipe.tools)

    def _compile_and_load(self, recipe: Recipe, workplace: str) -> None:
        cpp_extension = _cpp_extension()
        cuda_home = cpp_extension.CUDA_HOME
        environment = recipe.environment
        command = shlex.split(environment["CXX"])
        if len(command) > 1:  # PyTorch takes it for one name
            script = Path(workplace) / "compiler"
            script.write_bytes(os.fsencode(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'))
            script.chmod(0o755)
            environment = {**environment, "CXX": str(script)}
        try:
            with _environment(environment):
                if recipe.cuda_home:
                    cpp_extension.CUDA_HOME = str(recipe.cuda_home)
                cpp_extension.load(
                    name=f"stylegan2_mr_{self.name}",
                    sources=[str(self.folder / source) for source in self.sources],
                    extra_cflags=list(recipe.flags),
                    extra_cuda_cflags=list(self.cuda_flags),
                    extra_ldflags=[*CPP_LIBRARY, *(flag for flag in recipe.flags if flag == "-fopenmp")],
                    build_directory=workplace,
                    is_python_module=False,
                )
        finally:
            cpp_extension.CUDA_HOME = cuda_home

    def _recipe(self) -> Recipe:
        """Find the tools. Raises Unavailable where one is missing: that is not remembered, for it is soon mended."""
        compiler = _compiler()
        command = shlex.split(compiler)
        # ninja is installed among the scripts of an environment, which serves without being activated. Messages are
        # picked from in English.
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
        environment = {"PATH": path, "CXX": compiler, "LC_ALL": "C"}
        # Flags like -march=native mean different things on different machines that may share a home folder. What the
        # compiler makes of them shows in its macros, and so does whether it takes them at all.
        flags = self.flags
        macros = _output(*command, *flags, "-dM", "-E", "-x", "c++", os.devnull)
        if macros is None:
            flags = tuple(flag for flag in flags if not flag.startswith("-march"))
            macros = _output(*command, *flags, "-dM", "-E", "-x", "c++", os.devnull) or ""
        tools = [(_output(*command, "--version") or "").partition("\n")[0]]
        home = None
        if self._is_cuda:
            home, release = _cuda_toolkit()
            architectures = _cuda_architectures(home)
            environment["TORCH_CUDA_ARCH_LIST"] = architectures
            tools.append(f"CUDA toolkit {release} in {home} for {architectures}")
        return Recipe(flags, macros, tuple(tools), environment, home)

    def _key(self, recipe: Recipe) -> str:
        """What tells this library from those of other sources, tools and machines."""
        files = [self.folder / source for source in self.sources] + sorted(self.folder.rglob("*.h"))
        try:
            contents = [(str(file.relative_to(self.folder)), sha256(file)) for file in files]
        except FileNotFoundError as error:
            raise Unavailable(f"their source {error.filename} is missing: install the project anew") from None
        pytorch = (torch.__version__, torch.version.cuda, torch.compiled_with_cxx11_abi(), platform.machine())
        parts = (contents, pytorch, recipe.flags, self.cuda_flags, CPP_LIBRARY, recipe.macros, recipe.tools)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


# PyTorch's parallel loops are serial without OpenMP, which the compiler of macOS lacks. The library that they then need
# is the one that PyTorch has loaded already, so that both share its threads.
OPENMP = () if sys.platform == "darwin" else ("-fopenmp",)
# Some compilers are set up to link libstdc++ statically (-static-libstdc++). Beside the one that PyTorch has loaded,
# such a copy can't write numbers: messages end at the first, or the process crashes. Named first, the shared one wins.
CPP_LIBRARY = ("-lstdc++",) if sys.platform == "linux" else ()
# Sums may be taken in any order, which vectorising them needs. NaN and infinities keep their meaning.
REORDER = ("-fassociative-math", "-fno-signed-zeros")

LIBRARIES = {
    "cpu": Library(
        name="cpu",
        folder=CSRC,
        sources=("cpu/binding.cpp", "autograd.cpp"),
        flags=("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", *REORDER, *OPENMP),
    ),
    "cuda": Library(
        name="cuda",
        folder=CSRC,
        sources=("cuda/binding.cpp", "cuda/tail.cu", "cuda/upfirdn2d.cu"),
        flags=("-O3",),
        cuda_flags=("-O3",),
    ),
}

PATIENCE = 3  # seconds of waiting that need no explanation

_statuses: dict[str, Status] = {}
_once = threading.RLock()
_reference_only = 0


def available(device_type: str) -> bool:
    """Whether native operators serve on such devices. The first call in a process loads them, building if need be."""
    if _reference_only:
        return False
    known = _statuses.get(device_type)
    return (known or status(device_type)).error is None


def serve(x: torch.Tensor) -> bool:
    """Whether native operators serve on the device of x."""
    return available("cpu" if x.is_cpu else x.device.type)  # making the name of a type takes a third of a microsecond


def status(device_type: str) -> Status:
    """What became of the native operators for such devices. The first call in a process loads them."""
    with _once:
        if device_type not in _statuses:
            _statuses[device_type] = _load(device_type)
        return _statuses[device_type]


@contextlib.contextmanager
def reference_only() -> Iterator[None]:
    """Answer, within the block and in all threads, that no native operators are available."""
    global _reference_only
    with _once:
        _reference_only += 1
    try:
        yield
    finally:
        with _once:
            _reference_only -= 1


def _load(device_type: str) -> Status:
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "reference", "rebuild"):
        raise UserError(f"{SWITCH}={switch!r}: expected reference or rebuild, or leave it unset")
    if switch == "reference":
        return Status(error=f"switched off by {SWITCH}=reference")
    if device_type not in LIBRARIES:
        return Status(error=f"there are none for {device_type}")
    if device_type == "cuda" and torch.version.cuda is None:
        return Status(error=f"PyTorch {torch.__version__} is built without CUDA")
    if device_type == "cuda" and not torch.cuda.is_available():
        return Status(error="no CUDA GPU is visible")
    if device_type == "cuda" and status("cpu").error is not None:
        return Status(error="those for cpu, which hold the derivatives on any device, are not available")
    try:
        return LIBRARIES[device_type].load(rebuild=switch == "rebuild")
    except Unavailable as error:
        _say(f"no native operators for {device_type}, so slower ones in plain PyTorch serve: {error}")
        return Status(error=str(error))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _retry(folder: Path) -> str:
    return f"To try again, delete the folder {folder} or set {SWITCH}=rebuild"


def _describe(error: Exception) -> str:
    """What an error says. Of a library that doesn't load, the cause alone tells why."""
    return str(error.__cause__ if isinstance(error, OSError) and error.__cause__ else error)


def _output(*command: str | Path) -> str | None:
    """What a command prints, or None if it fails."""
    try:
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return (run.stdout + run.stderr).decode(errors="replace")


def _cpp_extension():
    """PyTorch's builder. Its import remarks on a missing GPU, which is no news to who asks for CPU operators."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from torch.utils import cpp_extension
    finally:
        logger.setLevel(level)
    return cpp_extension


def _root() -> Path:
    """Where PyTorch keeps the extensions that it builds."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or _cpp_extension().get_default_build_root()).resolve()


def _require_own(folder: Path) -> None:
    """Raise Unavailable if others than the user and root could put code where libraries are built and loaded."""
    _refuse_distrusted(folder, os.lstat(folder), stat.S_ISDIR)
    for parent in folder.parents:
        state = parent.stat()
        # Where everybody may write, as in /tmp, the sticky bit leaves what is there to its owner and to the parent's.
        if state.st_mode & stat.S_IWOTH and not (state.st_mode & stat.S_ISVTX and state.st_uid in (0, os.geteuid())):
            raise Unavailable(
                f"{parent} can be written by all users, who could replace what is below: chmod o-w it, or {_OWN}"
            )


def _refuse_distrusted(path: Path, state: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    if reason := distrust(state) if is_kind(state.st_mode) else "is a link, or something else than expected":
        raise Unavailable(f"{path} {reason}, so nothing is run from there: delete it if it is yours, or {_OWN}")


_OWN = "set TORCH_EXTENSIONS_DIR to a folder of your own"


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the time of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _open_lock(name: str, flags: int) -> int:
    """Neither through a link that another user left there, nor waiting at a pipe."""
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)


@contextlib.contextmanager
def _locked(path: Path, awaited: str) -> Iterator[None]:
    """Keep other processes out of the block. The system frees the lock of a process that is killed."""
    with open(path, "a", opener=_open_lock) as file:
        if os.fstat(file.fileno()).st_uid not in (0, os.geteuid()):  # who could keep this process waiting for ever
            raise Unavailable(f"{path} belongs to another user: {_OWN}")
        patience = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
            if time.monotonic() > patience:
                _say(f"waiting for {awaited} ...")
                patience = math.inf
        yield


def _compiler() -> str:
    """The C++ compiler's command."""
    chosen = os.environ.get("CXX", "").strip()
    for command in [chosen] if chosen else ["c++", "g++", "clang++"]:
        if shutil.which(shlex.split(command)[0]):
            return command
    raise Unavailable(
        f"the C++ compiler {chosen} that CXX names is missing: correct or unset CXX"
        if chosen
        else "a C++ compiler is missing: apt-get install g++, or conda install cxx-compiler and activate again, "
        "or set CXX to one"
    )


def cuda_homes() -> Iterator[Path]:
    """Folders of CUDA toolkits, the likeliest first."""
    seen = set()
    for candidate in _cuda_candidates():
        home = Path(candidate).resolve()
        if home not in seen and (home / "include/cuda_runtime.h").is_file() and (home / "bin/nvcc").is_file():
            yield home
        seen.add(home)


def _cuda_candidates() -> Iterator[str | Path]:
    yield from filter(None, (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")))
    if nvcc := shutil.which("nvcc"):
        yield Path(nvcc).resolve().parent.parent
        # It may be a script in a folder of its own; the compiler that it calls knows where it lives.
        plan = _output(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull) or ""
        yield from re.findall(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    yield from sorted(Path("/usr/local").glob("cuda*"))


def _cuda_toolkit() -> tuple[Path, str]:
    """(folder, release) of a toolkit whose libraries fit PyTorch's: those of one major version do."""
    expected = str(torch.version.cuda)
    found = []
    for home in cuda_homes():
        release = re.search(r"release (\d+\.\d+)", _output(home / "bin/nvcc", "--version") or "")
        if release and release[1].split(".")[0] == expected.split(".")[0]:
            return home, release[1]
        found.append(f"{release[1] if release else 'a broken one'} in {home}")
    fitting = f"install one of version {expected} and set CUDA_HOME to its folder"
    if found:
        raise Unavailable(f"PyTorch is built for CUDA {expected}; found the toolkit {', '.join(found)}: {fitting}")
    raise Unavailable(
        "the CUDA toolkit is missing: no folder with include/cuda_runtime.h and bin/nvcc in CUDA_HOME, around an nvcc "
        f"on the PATH, or under /usr/local: {fitting}"
    )


def _cuda_architectures(home: Path) -> str:
    """What to compile for, in the words of TORCH_CUDA_ARCH_LIST: as that says, or for the cards that are visible."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if asked not in ("", "native"):
        return asked
    listed = re.findall(r"compute_(\d+)(\d)\b", _output(home / "bin/nvcc", "--list-gpu-arch") or "")
    known = sorted((int(major), int(minor)) for major, minor in listed)
    wanted = set()
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_capability(index)
        fitting = [architecture for architecture in known if architecture <= card]
        if not fitting:
            raise Unavailable(
                f"the toolkit in {home} does not build for {torch.cuda.get_device_name(index)} (compute capability "
                f"{card[0]}.{card[1]}): install an older one, and a PyTorch that goes with it"
            )
        # To a card that is newer than the toolkit, PTX is translated when the library is loaded.
        major, minor = fitting[-1]
        wanted.add(f"{major}.{minor}" if fitting[-1] == card else f"{major}.{minor}+PTX")
    if not wanted:
        raise Unavailable("no CUDA GPU is visible; to build without one, set TORCH_CUDA_ARCH_LIST, for example to 9.0")
    return ";".join(sorted(wanted))


ERROR_LINE = re.compile(
    r"\berror\b\s*(#\S+\s*)?:|\bfatal\b.*:|undefined (reference|symbol)|cannot find -l|Killed|No space left"
)
PASSING = re.compile(r"No space left on device|Kill(ed)? signal|[Cc]annot allocate memory")  # says nothing of next time
REMEDIES = {
    r"Python\.h": "install Python's headers: apt-get install python3-dev",
    r"(cu|nv)\w+\.h(pp)?: No such file": "install the whole CUDA toolkit, and set CUDA_HOME to its folder",
    r"unsupported (GNU|clang) version": "install a C++ compiler that this CUDA toolkit takes, and set CC and CXX to it",
    r"Unsupported gpu architecture|Unknown CUDA arch": (
        "set TORCH_CUDA_ARCH_LIST to architectures that both nvcc --list-gpu-arch and PyTorch know, for example 9.0"
    ),
    r"-std=\S+": "install a newer C++ compiler, or set CXX to one: this one does not know the C++ of PyTorch",
    r"cannot find -lcudart": "install the CUDA toolkit's runtime library, and set CUDA_HOME to the toolkit's folder",
    r"GLIBCXX_\S+' not found": (
        "the compiler is newer than the libstdc++ that Python has loaded: set CXX to an older one, or update libstdc++"
    ),
    r"No space left": "free some space, or set TORCH_EXTENSIONS_DIR to a folder on another disk",
    r"Kill(ed)? signal|[Cc]annot allocate memory": "memory ran out: set MAX_JOBS=1 to compile one file at a time",
}


def _explain(log: str) -> str:
    """The lines of a build's log that tell what is wrong, and what would do."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if ERROR_LINE.search(line)] or lines[-6:]
    shown = [f"  {line[:300]}" for line in telling[:6]]
    shown += [f"To mend it: {remedy}" for cause, remedy in REMEDIES.items() if re.search(cause, "\n".join(telling))]
    return "\n".join(shown)

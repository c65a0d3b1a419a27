"""How a native library is compiled: sources, flags and tools, the key of a build, and what to do when one fails."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dnnlib.files import sha256


class Unavailable(Exception):
    """Why there is no library; the message says what would help."""


# ---- Libraries ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Library:
    """The operators for one type of device."""

    name: str
    folder: Path  # of sources and headers
    sources: tuple[str, ...]  # their paths below it; those ending in .cu make it a CUDA library
    flags: tuple[str, ...]  # of the C++ compiler
    cuda_flags: tuple[str, ...] = ()  # of nvcc

    @property
    def is_cuda(self) -> bool:
        return any(source.endswith(".cu") for source in self.sources)


# PyTorch's parallel loops are serial without OpenMP, which the compiler of macOS lacks. The library that they then need
# is the one that PyTorch has loaded already, so that both share its threads.
OPENMP = () if sys.platform == "darwin" else ("-fopenmp",)
# Some compilers are set up to link libstdc++ statically (-static-libstdc++). Beside the one that PyTorch has loaded,
# such a copy can't write numbers: messages end at the first, or the process crashes. Named first, the shared one wins.
CPP_LIBRARY = ("-lstdc++",) if sys.platform == "linux" else ()
# Sums may be taken in any order, which vectorizing them needs. NaN and infinities keep their meaning.
REORDER = ("-fassociative-math", "-fno-signed-zeros")

CSRC = Path(__file__).parent / "csrc"
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


# ---- Tools -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toolchain:
    """What a library is built with on this machine."""

    flags: tuple[str, ...]  # of the C++ compiler
    macros: str  # what the compiler defines, given these flags
    tools: tuple[str, ...]  # compiler and CUDA toolkit, with their versions
    environment: dict[str, str]  # variables, for the time of the build
    cuda_home: Path | None


def find_toolchain(library: Library) -> Toolchain:
    """Find the tools for a library. Raises Unavailable where one is missing."""
    compiler = _compiler()
    command = shlex.split(compiler)
    # ninja is installed among the scripts of a Python environment, and serves without the environment being activated.
    # Messages have to be in English, as `explain` searches them.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    environment = {"PATH": path, "CXX": compiler, "LC_ALL": "C"}
    # Flags like -march=native mean different things on different machines that may share a home folder. The macros show
    # what the compiler makes of them, and whether it takes them at all.
    flags = library.flags
    macros = _output(*command, *flags, "-dM", "-E", "-x", "c++", os.devnull)
    if macros is None:
        flags = tuple(flag for flag in flags if not flag.startswith("-march"))
        macros = _output(*command, *flags, "-dM", "-E", "-x", "c++", os.devnull) or ""
    tools = [(_output(*command, "--version") or "").partition("\n")[0]]
    home = None
    if library.is_cuda:
        home, release = cuda_toolkit()
        architectures = cuda_architectures(home)
        environment["TORCH_CUDA_ARCH_LIST"] = architectures
        tools.append(f"CUDA toolkit {release} in {home} for {architectures}")
    return Toolchain(flags, macros, tuple(tools), environment, home)


def _output(*command: str | Path) -> str | None:
    """What a command prints, or None if it fails."""
    try:
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return (run.stdout + run.stderr).decode(errors="replace")


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
        # It may be a script in a folder of its own. The compiler that it calls knows where it lives.
        plan = _output(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull) or ""
        yield from re.findall(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    yield from sorted(Path("/usr/local").glob("cuda*"))


def cuda_toolkit() -> tuple[Path, str]:
    """(folder, release) of a toolkit of the major version that PyTorch is built for. Raises Unavailable."""
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


def cuda_architectures(home: Path) -> str:
    """What to compile for, as a TORCH_CUDA_ARCH_LIST: what that variable says, else the cards that are visible.

    home: the toolkit's folder. Raises Unavailable where there is no card, or one that the toolkit does not know.
    """
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


# ---- Compiling ---------------------------------------------------------------------------------------------------


def build_key(library: Library, toolchain: Toolchain) -> str:
    """What tells a build from those of other sources, tools and machines. Raises Unavailable if a source is missing."""
    files = [library.folder / source for source in library.sources] + sorted(library.folder.rglob("*.h"))
    try:
        contents = [(str(file.relative_to(library.folder)), sha256(file)) for file in files]
    except FileNotFoundError as error:
        raise Unavailable(f"their source {error.filename} is missing: install the project anew") from None
    pytorch = (torch.__version__, torch.version.cuda, torch.compiled_with_cxx11_abi(), platform.machine())
    built_with = (toolchain.flags, library.cuda_flags, CPP_LIBRARY, toolchain.macros, toolchain.tools)
    return hashlib.sha256(repr((contents, pytorch, *built_with)).encode()).hexdigest()[:16]


def builds_folder() -> Path:
    """Where PyTorch keeps the extensions that it builds."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or _cpp_extension().get_default_build_root()).resolve()


def require_ninja(toolchain: Toolchain) -> None:
    """Raise Unavailable if there is none."""
    if not shutil.which("ninja", path=toolchain.environment["PATH"]):
        raise Unavailable("ninja is missing: pip install ninja")


def compile_and_load(library: Library, toolchain: Toolchain, workplace: Path) -> Path:
    """Build a library in an empty folder, load it, and return its file. Raises whatever goes wrong."""
    cpp_extension = _cpp_extension()
    cuda_home = cpp_extension.CUDA_HOME
    environment = toolchain.environment
    command = shlex.split(environment["CXX"])
    if len(command) > 1:  # PyTorch takes it for one name
        script = workplace / "compiler"
        script.write_bytes(os.fsencode(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'))
        script.chmod(0o755)
        environment = {**environment, "CXX": str(script)}
    try:
        with _environment(environment):
            if toolchain.cuda_home:
                cpp_extension.CUDA_HOME = str(toolchain.cuda_home)
            cpp_extension.load(
                name=f"stylegan2_mr_{library.name}",
                sources=[str(library.folder / source) for source in library.sources],
                extra_cflags=list(toolchain.flags),
                extra_cuda_cflags=list(library.cuda_flags),
                extra_ldflags=[*CPP_LIBRARY, *(flag for flag in toolchain.flags if flag == "-fopenmp")],
                build_directory=str(workplace),
                is_python_module=False,
            )
    finally:
        cpp_extension.CUDA_HOME = cuda_home
    (built,) = workplace.glob("*.so")
    return built


def _cpp_extension():
    """PyTorch's builder. Its import warns of a missing GPU, which does not matter to CPU operators."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from torch.utils import cpp_extension
    finally:
        logger.setLevel(level)
    return cpp_extension


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


# ---- Failures ----------------------------------------------------------------------------------------------------

ERROR_LINE = re.compile(
    r"\berror\b\s*(#\S+\s*)?:|\bfatal\b.*:|undefined (reference|symbol)|cannot find -l|Killed|No space left"
)
PASSING = re.compile(r"No space left on device|Kill(ed)? signal|[Cc]annot allocate memory")
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


def is_passing(log: str) -> bool:
    """Whether the build failed for a reason that may be gone next time: want of memory or of room on the disk."""
    return bool(PASSING.search(log))


def explain(log: str) -> str:
    """The lines of a build's log that tell what is wrong, and what would help."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if ERROR_LINE.search(line)] or lines[-6:]
    shown = [f"  {line[:300]}" for line in telling[:6]]
    shown += [f"To mend it: {remedy}" for cause, remedy in REMEDIES.items() if re.search(cause, "\n".join(telling))]
    return "\n".join(shown)

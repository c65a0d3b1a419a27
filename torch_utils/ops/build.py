"""Compilation of native libraries: sources, flags, tools, the key of a build, and advice when a build fails."""

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
    """A library can't be built or loaded. The message gives the reason, and what would help."""


# ---- Libraries ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Library:
    """Native operators for one type of device."""

    name: str
    folder: Path  # of sources and headers
    sources: tuple[str, ...]  # paths below the folder; a file that ends in .cu makes it a CUDA library
    flags: tuple[str, ...]  # of the C++ compiler
    cuda_flags: tuple[str, ...] = ()  # of nvcc

    @property
    def is_cuda(self) -> bool:
        """True if building it needs nvcc."""
        return any(source.endswith(".cu") for source in self.sources)


# Without OpenMP, PyTorch's parallel loops run in one thread. The compiler of macOS lacks OpenMP. At run time, the
# library uses the OpenMP that PyTorch has already loaded, so both share its threads.
OPENMP = () if sys.platform == "darwin" else ("-fopenmp",)
# Some compilers are configured to link libstdc++ statically (-static-libstdc++). Beside the libstdc++ that PyTorch has
# loaded, a second copy can't format numbers: messages end early, or the process crashes. If the shared library is named
# first, it is used.
CPP_LIBRARY = ("-lstdc++",) if sys.platform == "linux" else ()
# Let the compiler reorder sums, so that it can vectorize them. NaN and infinity keep their meaning.
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
    """Tools and flags to build a library with on this machine."""

    flags: tuple[str, ...]  # of the C++ compiler
    macros: str  # that the compiler predefines with these flags
    tools: tuple[str, ...]  # compiler and CUDA toolkit, with their versions
    environment: dict[str, str]  # environment variables during the build
    cuda_home: Path | None  # folder of the CUDA toolkit; None: the library needs none


def find_toolchain(library: Library) -> Toolchain:
    """Find the tools for a library. Raises Unavailable if one is missing."""
    compiler = _compiler()
    command = shlex.split(compiler)
    # ninja lies among the scripts of the Python environment. This finds it even if the environment is not activated.
    # LC_ALL=C makes messages English, as `explain` searches them.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    environment = {"PATH": path, "CXX": compiler, "LC_ALL": "C"}
    # Machines may share a home folder, but -march=native differs between them. The macros show the meaning of the flags
    # on this machine, and whether the compiler accepts them at all.
    flags = library.flags
    macros = _output(*command, *flags, "-dM", "-E", "-x", "c++", os.devnull)  # -dM -E prints all macros
    if macros is None:  # the compiler does not know -march=native: build for any processor of this kind
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
    """Run a command and return what it prints. None: the command fails."""
    try:
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return (run.stdout + run.stderr).decode(errors="replace")


def _compiler() -> str:
    """Return the command of the C++ compiler. Raises Unavailable if there is none."""
    chosen = os.environ.get("CXX", "").strip()
    for command in [chosen] if chosen else ["c++", "g++", "clang++"]:
        if shutil.which(shlex.split(command)[0]):
            return command
    raise Unavailable(
        f"the C++ compiler {chosen}, given by CXX, is missing: correct or unset CXX"
        if chosen
        else "a C++ compiler is missing: apt-get install g++, or conda install cxx-compiler and activate again, "
        "or set CXX to one"
    )


def cuda_homes() -> Iterator[Path]:
    """Yield folders of CUDA toolkits, the most likely one first."""
    seen = set()
    for candidate in _cuda_candidates():
        home = Path(candidate).resolve()
        if home not in seen and (home / "include/cuda_runtime.h").is_file() and (home / "bin/nvcc").is_file():
            yield home
        seen.add(home)


def _cuda_candidates() -> Iterator[str | Path]:
    """Yield folders that may contain a CUDA toolkit, some of them more than once."""
    yield from filter(None, (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")))
    if nvcc := shutil.which("nvcc"):
        yield Path(nvcc).resolve().parent.parent
        # nvcc may be a script elsewhere that calls the real one. Its plan of a compilation names the toolkit's folder.
        plan = _output(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull) or ""
        yield from re.findall(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    yield from sorted(Path("/usr/local").glob("cuda*"))


def cuda_toolkit() -> tuple[Path, str]:
    """Return folder and release of a CUDA toolkit with PyTorch's major version. Raises Unavailable if there is none."""
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
    """Return the architectures to compile for, in the form of TORCH_CUDA_ARCH_LIST.

    They are the value of that environment variable, or else the architectures of the visible GPUs.
    home: the toolkit's folder. Raises Unavailable if there is no GPU, or one that the toolkit can't compile for.
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
        # For a GPU newer than the toolkit, compile to PTX, which the driver translates when the library is loaded.
        major, minor = fitting[-1]
        wanted.add(f"{major}.{minor}" if fitting[-1] == card else f"{major}.{minor}+PTX")
    if not wanted:
        raise Unavailable("no CUDA GPU is visible; to build without one, set TORCH_CUDA_ARCH_LIST, for example to 9.0")
    return ";".join(sorted(wanted))


# ---- Compiling ---------------------------------------------------------------------------------------------------


def build_key(library: Library, toolchain: Toolchain) -> str:
    """Hash of everything that a build depends on: sources, tools, flags, PyTorch, machine.

    Raises Unavailable if a source file is missing.
    """
    files = [library.folder / source for source in library.sources] + sorted(library.folder.rglob("*.h"))
    try:
        contents = [(str(file.relative_to(library.folder)), sha256(file)) for file in files]
    except FileNotFoundError as error:
        raise Unavailable(f"their source {error.filename} is missing: install the project again") from None
    pytorch = (torch.__version__, torch.version.cuda, torch.compiled_with_cxx11_abi(), platform.machine())
    built_with = (toolchain.flags, library.cuda_flags, CPP_LIBRARY, toolchain.macros, toolchain.tools)
    return hashlib.sha256(repr((contents, pytorch, *built_with)).encode()).hexdigest()[:16]


def builds_folder() -> Path:
    """Folder in which PyTorch keeps the extensions that it builds."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or _cpp_extension().get_default_build_root()).resolve()


def require_ninja(toolchain: Toolchain) -> None:
    """Raise Unavailable if ninja is missing."""
    if not shutil.which("ninja", path=toolchain.environment["PATH"]):
        raise Unavailable("ninja is missing: pip install ninja")


def compile_and_load(library: Library, toolchain: Toolchain, workplace: Path) -> Path:
    """Build a library in the empty folder `workplace`, and load it. Returns its file. Raises exceptions of any kind."""
    cpp_extension = _cpp_extension()
    cuda_home = cpp_extension.CUDA_HOME
    environment = toolchain.environment
    command = shlex.split(environment["CXX"])
    if len(command) > 1:  # such as "ccache g++": PyTorch takes CXX for the name of one file
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
        cpp_extension.CUDA_HOME = cuda_home  # other extensions of this process may need another toolkit
    (built,) = workplace.glob("*.so")
    return built


def _cpp_extension():
    """Import PyTorch's builder, without its warning of a missing GPU: CPU operators don't need one."""
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
    """Set environment variables during the block."""
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

# Lines of a build's log that tell what is wrong.
ERROR_LINE = re.compile(
    r"\berror\b\s*(#\S+\s*)?:|\bfatal\b.*:|undefined (reference|symbol)|cannot find -l|Killed|No space left"
)
# Reasons that may be gone at the next build.
PASSING = re.compile(r"No space left on device|Kill(ed)? signal|[Cc]annot allocate memory")
# Pattern in such lines -> what would help.
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
    """Return whether a build failed for a reason that may be gone next time: lack of memory or disk space."""
    return bool(PASSING.search(log))


def explain(log: str) -> str:
    """Extract the lines of a build's log that tell what is wrong, and add advice."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if ERROR_LINE.search(line)] or lines[-6:]
    shown = [f"  {line[:300]}" for line in telling[:6]]
    shown += [f"To mend it: {remedy}" for cause, remedy in REMEDIES.items() if re.search(cause, "\n".join(telling))]
    return "\n".join(shown)

"""Loading of native operators, which are built at first use. If they are missing, `reference` is used instead."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dnnlib.errors import UserError
from dnnlib.files import write_bytes
from dnnlib.system import PLAIN, distrust
from torch_utils.ops import build
from torch_utils.ops.build import Library, Toolchain, Unavailable

SWITCH = "STYLEGAN2_MR_OPS"  # environment variable: "reference" or "rebuild"
PATIENCE = 3  # seconds of waiting until a message explains it


@dataclass(frozen=True)
class Status:
    """State of a library in this process."""

    file: Path | None = None  # the loaded file
    seconds: float = 0  # duration of its build; 0: it was built earlier
    tools: tuple[str, ...] = ()  # compiler and CUDA toolkit of its build
    error: str | None = None  # why no library is loaded


_statuses: dict[str, Status] = {}  # by type of device
_once = threading.RLock()  # so that only one thread loads
_reference_only = 0  # number of `reference_only` blocks that are open


def available(device_type: str) -> bool:
    """Return whether such devices have native operators. The first call in a process builds and loads them."""
    if _reference_only:
        return False
    known = _statuses.get(device_type)
    return (known or status(device_type)).error is None


def serve(x: torch.Tensor) -> bool:
    """Return whether the device of x has native operators."""
    # x.device.type makes a string, which takes a third of a microsecond. The CPU is spared it.
    return available("cpu" if x.is_cpu else x.device.type)


def status(device_type: str) -> Status:
    """Return the state of the native operators for such devices. The first call in a process loads them."""
    with _once:
        if device_type not in _statuses:
            _statuses[device_type] = _load_for(device_type)
        return _statuses[device_type]


@contextlib.contextmanager
def reference_only() -> Iterator[None]:
    """Use no native operators in the block. This holds for all threads of the process."""
    global _reference_only
    with _once:
        _reference_only += 1
    try:
        yield
    finally:
        with _once:
            _reference_only -= 1


def _load_for(device_type: str) -> Status:
    """Load the library for a type of device, or say why it can't be used. Raises UserError for a wrong SWITCH."""
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "reference", "rebuild"):
        raise UserError(f"{SWITCH}={switch!r}: expected reference or rebuild, or leave it unset")
    if switch == "reference":
        return Status(error=f"switched off by {SWITCH}=reference")
    if device_type not in build.LIBRARIES:
        return Status(error=f"there are none for {device_type}")
    if device_type == "cuda" and torch.version.cuda is None:
        return Status(error=f"PyTorch {torch.__version__} is built without CUDA")
    if device_type == "cuda" and not torch.cuda.is_available():
        return Status(error="no CUDA GPU is visible")
    if device_type == "cuda" and status("cpu").error is not None:
        return Status(error="those for cpu, which hold the derivatives on any device, are not available")
    try:
        return load(build.LIBRARIES[device_type], rebuild=switch == "rebuild")
    except Unavailable as error:
        _say(f"no native operators for {device_type}; using slower ones in plain PyTorch: {error}")
        return Status(error=str(error))


def load(library: Library, rebuild: bool = False) -> Status:
    """Load a library, and build it first if its file is missing. Raises Unavailable if that fails.

    A failed build is recorded on disk, and not repeated until sources or tools change. A missing tool is not recorded,
    as it may be installed next time. rebuild: build in any case.
    """
    toolchain = build.find_toolchain(library)
    folder = build.builds_folder() / f"stylegan2_mr_{library.name}_{build.build_key(library, toolchain)}"
    file, failure = folder / "native.so", folder / "failure.txt"
    asked = time.time()

    def outdated(path: Path) -> bool:
        # For a rebuild, a file counts if another process made it while this one waited.
        return not path.exists() or (rebuild and path.stat().st_mtime < asked)

    try:
        if outdated(file):
            build.require_ninja(toolchain)
            _make_folder(folder)
        _require_own(folder)
        if outdated(file):
            with _locked(folder.with_suffix(".lock"), f"another process to build native operators for {library.name}"):
                # Test again: another process may have built it while this one waited for the lock.
                if outdated(file) and outdated(failure):
                    return _build(library, toolchain, folder, file, failure)
        if not file.exists():
            raise Unavailable(f"their build failed before; see {failure}. {_retry(folder)}")
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
    return Status(file, tools=toolchain.tools)


def _build(library: Library, toolchain: Toolchain, folder: Path, file: Path, failure: Path) -> Status:
    """Build and load a library. Raises Unavailable if that fails.

    The library gets its final name only after it could be loaded, so a killed or broken build leaves no file.
    """
    _say(f"building native operators for {library.name} (once, about a minute) ...")
    begun = time.monotonic()
    for leftover in folder.glob("build-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder, ignore_cleanup_errors=True) as workplace:
        try:
            built = build.compile_and_load(library, toolchain, Path(workplace))
        except Exception as error:  # of any kind: the program can go on with the reference
            log = _describe(error)
            write_bytes(folder / "build.log", log.encode("utf-8", PLAIN))
            message = f"their build failed:\n{build.explain(log)}\nThe whole log: {folder / 'build.log'}"
            if not build.is_passing(log):
                write_bytes(failure, message.encode("utf-8", PLAIN))
                message = f"{message}\n{_retry(folder)}"
            raise Unavailable(message) from None
        built.chmod(0o755)
        os.replace(built, file)
    failure.unlink(missing_ok=True)
    seconds = time.monotonic() - begun
    _say(f"native operators for {library.name} built in {seconds:.0f} s")
    return Status(file, seconds, toolchain.tools)


def _say(text: str) -> None:
    """Write a line to stderr at once."""
    print(text, file=sys.stderr, flush=True)


def _retry(folder: Path) -> str:
    """Advice on how to build again."""
    return f"To try again, delete the folder {folder} or set {SWITCH}=rebuild"


def _describe(error: Exception) -> str:
    """Return an error's message. If a library does not load, PyTorch wraps the error, and only its cause is telling."""
    return str(error.__cause__ if isinstance(error, OSError) and error.__cause__ else error)


# ---- Folders and files that only this user and root can have written -----------------------------------------------

_OWN = "set TORCH_EXTENSIONS_DIR to a folder of your own"


def _make_folder(folder: Path) -> None:
    """Make a folder with its parents that only this user can write, whatever the umask.

    Nothing is loaded from a folder that other users can write.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster
            path.mkdir(0o755)


def _require_own(folder: Path) -> None:
    """Raise Unavailable if users other than this one and root could put code into the folder of a library."""
    _refuse_distrusted(folder, os.lstat(folder), stat.S_ISDIR)
    for parent in folder.parents:
        state = parent.stat()
        # Everybody may write to /tmp, but its sticky bit lets only the owners rename or delete what is in it.
        if state.st_mode & stat.S_IWOTH and not (state.st_mode & stat.S_ISVTX and state.st_uid in (0, os.geteuid())):
            raise Unavailable(
                f"all users can write {parent}, and could replace the files below it: chmod o-w it, or {_OWN}"
            )


def _refuse_distrusted(path: Path, state: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    """Raise Unavailable if a path is not of the expected kind (stat.S_ISDIR, …), or other users can change it."""
    if reason := distrust(state) if is_kind(state.st_mode) else "is a link, or something else than expected":
        raise Unavailable(f"{path} {reason}, so nothing is run from there: delete it if it is yours, or {_OWN}")


def _open_lock(name: str, flags: int) -> int:
    """Open a lock file. Doesn't follow a link that another user may have left there, and doesn't wait at a pipe."""
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)


@contextlib.contextmanager
def _locked(path: Path, awaited: str) -> Iterator[None]:
    """Keep other processes out of the block. awaited: for a message, if this process has to wait.

    The system releases the lock of a process that is killed.
    """
    with open(path, "a", opener=_open_lock) as file:
        if os.fstat(file.fileno()).st_uid not in (0, os.geteuid()):  # its owner could make this process wait forever
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
                patience = math.inf  # once is enough
        yield

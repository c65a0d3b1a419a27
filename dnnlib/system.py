"""Adapt a program to its surroundings: the operating system, the terminal's encoding, the user's name and folders."""

from __future__ import annotations

import codecs
import contextlib
import getpass
import os
import platform
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable

PLAIN = "plain-signs"  # handler of encoding errors: replaces a sign that can't be written by others that can
_SIGNS = {"…": "...", "×": "x", "±": "+-", "−": "-", "–": "-", "—": "-", "→": "->", "·": "-", "²": "2", "³": "3"}
# Python holds a byte of a file name that is not UTF-8 as one of these signs.
_BYTES = {chr(0xDC00 + byte): f"\\x{byte:02x}" for byte in range(0x80, 0x100)}
_ASCII = "ascii-as-asked"  # an encoding: see `_same_as_ascii`


def run(command: Callable, **options) -> None:
    """Call a click command as a program. Every program starts here."""
    _write_anything()
    _name_user()
    # MONAI imports joblib, which nothing here uses, and which warns at its import that /dev/shm is full or read-only.
    warnings.filterwarnings("ignore", "(?s).*joblib will operate in serial mode")
    command(**options)


def require_ground() -> None:
    """End the process with one message where this project can't run."""
    try:
        import fcntl  # noqa: F401
    except ImportError:
        _end(
            f"this project runs on Linux and macOS; Python has no fcntl here, on {platform.system()}: on Windows, use "
            "WSL, the Windows Subsystem for Linux"
        )
    if plain_text(here := os.path.dirname(os.path.abspath(__file__))) != here:
        _end(f"{plain_text(here)}: PyTorch runs no program from a folder whose name is not UTF-8: move or rename it")


def _end(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2) from None


# --- signs ------------------------------------------------------------------------------------------------------------


def plain_text(text: str) -> str:
    """Return text that any UTF-8 file can hold: bytes of file names that are not UTF-8 are spelled out, as in \\xff."""
    return text if text.isascii() else text.encode("utf-8", PLAIN).decode()


def _plain_signs(error: UnicodeError) -> tuple[str, int]:
    """Handle an encoding error: return what to write instead, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = (_SIGNS.get(c) or _BYTES.get(c) or ascii(c)[1:-1] for c in error.object[error.start : error.end])
    return "".join(signs), error.end


def _same_as_ascii(name: str) -> codecs.CodecInfo | None:
    """Offer ASCII under a name that click doesn't know. Click writes UTF-8 where it recognizes ASCII."""
    if name != _ASCII.replace("-", "_"):
        return None
    a = codecs.lookup("ascii")
    return codecs.CodecInfo(
        a.encode, a.decode, a.streamreader, a.streamwriter, a.incrementalencoder, a.incrementaldecoder, _ASCII
    )


codecs.register_error(PLAIN, _plain_signs)
codecs.register(_same_as_ascii)


def _write_anything() -> None:
    """Prepare stdout and stderr so that no encoding ends a program, whether by print, progress bars or click."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed; progress bars fail on None
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=_ASCII if is_ascii else None, errors=PLAIN)


# --- the user ---------------------------------------------------------------------------------------------------------


def _name_user() -> None:
    """Give a name, a home and a cache to a user without them, as under docker run --user 12345.

    MONAI's import asks for the name; PyTorch and matplotlib keep what they build in the cache.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    with contextlib.suppress(OSError):  # there is nowhere to write; a library that needs to will say so
        home = os.path.expanduser("~")
        if not os.path.isabs(home):  # libraries would make a folder of that name in the working folder
            home = os.environ["HOME"] = _own_folder()
        if not _can_make(os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")):
            os.environ["XDG_CACHE_HOME"] = os.path.join(_own_folder(), ".cache")
            os.environ.setdefault("MPLCONFIGDIR", os.environ["XDG_CACHE_HOME"])


def _can_make(folder: str) -> bool:
    """Tell whether a folder is there and can be written to, or can be made."""
    while not os.path.exists(folder):
        folder = os.path.dirname(folder) or "."
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def _own_folder() -> str:
    """Return a folder among the temporary files that belongs to this user, the same for all programs.

    Raises OSError if none can be made.
    """
    folder = os.path.join(tempfile.gettempdir(), f"stylegan2-mr-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    if stat.S_ISDIR(os.lstat(folder).st_mode) and distrust(os.lstat(folder)) is None:
        return folder
    return tempfile.mkdtemp(prefix="stylegan2-mr-")  # another user took the name


def distrust(state: os.stat_result) -> str | None:
    """Tell why a file or folder can't be trusted: another user than this one and root made it, or may change it.

    Returns None if it can be trusted.
    """
    if state.st_uid not in (0, os.geteuid()):
        return f"belongs to another user (number {state.st_uid})"
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by other users"
    return None

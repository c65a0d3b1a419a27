"""Adaptation of a program to its environment: operating system, encoding of the terminal, user name, folders."""

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

PLAIN = "plain-signs"  # our handler of encoding errors: replaces characters that can't be written
_SIGNS = {"…": "...", "×": "x", "±": "+-", "−": "-", "–": "-", "—": "-", "→": "->", "·": "-", "²": "2", "³": "3"}
# Python represents an invalid byte of a file name by one of these characters (PEP 383).
_BYTES = {chr(0xDC00 + byte): f"\\x{byte:02x}" for byte in range(0x80, 0x100)}
_ASCII = "ascii-as-asked"  # our name of an encoding; see `_same_as_ascii`


def run(command: Callable, **options) -> None:
    """Call a click command as a program. Every program starts here."""
    _write_anything()
    _name_user()
    # MONAI imports joblib, which this project does not use. Its import warns if /dev/shm is full or read-only.
    warnings.filterwarnings("ignore", "(?s).*joblib will operate in serial mode")
    command(**options)


def require_ground() -> None:
    """End the process with one message if the project can't run here."""
    try:
        import fcntl  # noqa: F401
    except ImportError:
        _end(
            f"this project runs on Linux and macOS; Python has no fcntl here, on {platform.system()}: on Windows, use "
            "WSL, the Windows Subsystem for Linux"
        )
    if plain_text(here := os.path.dirname(os.path.abspath(__file__))) != here:
        _end(f"{plain_text(here)}: PyTorch can't run from a folder whose name is not UTF-8: move or rename it")


def _end(message: str) -> None:
    """Exit with a message and code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2) from None


# --- characters -------------------------------------------------------------------------------------------------------


def plain_text(text: str) -> str:
    """Return text that can be encoded as UTF-8. Invalid bytes of file names are spelled out, as in \\xff."""
    return text if text.isascii() else text.encode("utf-8", PLAIN).decode()


def _plain_signs(error: UnicodeError) -> tuple[str, int]:
    """Handle an encoding error. Returns replacement characters, and the position at which to continue."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    # A look-alike, a spelled-out byte, or Python's escape, without the quotes around it.
    signs = (_SIGNS.get(c) or _BYTES.get(c) or ascii(c)[1:-1] for c in error.object[error.start : error.end])
    return "".join(signs), error.end


def _same_as_ascii(name: str) -> codecs.CodecInfo | None:
    """Look up ASCII under our own name. Click replaces an encoding that it recognizes as ASCII by UTF-8."""
    if name != _ASCII.replace("-", "_"):
        return None
    a = codecs.lookup("ascii")
    return codecs.CodecInfo(
        a.encode, a.decode, a.streamreader, a.streamwriter, a.incrementalencoder, a.incrementaldecoder, _ASCII
    )


codecs.register_error(PLAIN, _plain_signs)
codecs.register(_same_as_ascii)


def _write_anything() -> None:
    """Prepare stdout and stderr, so that no character that they can't encode ends a program."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed; progress bars fail on None
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=_ASCII if is_ascii else None, errors=PLAIN)


# --- the user ---------------------------------------------------------------------------------------------------------


def _name_user() -> None:
    """Give a user without name, home or cache these three. `docker run --user 12345` makes such a user.

    MONAI asks for the name when it is imported. PyTorch and matplotlib store files in the cache.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    with contextlib.suppress(OSError):  # no folder can be written; a library that needs one will report it
        home = os.path.expanduser("~")
        if not os.path.isabs(home):  # libraries would make a folder named "~" in the working folder
            home = os.environ["HOME"] = _own_folder()
        if not _can_make(os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")):
            os.environ["XDG_CACHE_HOME"] = os.path.join(_own_folder(), ".cache")
            os.environ.setdefault("MPLCONFIGDIR", os.environ["XDG_CACHE_HOME"])


def _can_make(folder: str) -> bool:
    """Return whether a folder exists and can be written, or can be made."""
    while not os.path.exists(folder):
        folder = os.path.dirname(folder) or "."
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def _own_folder() -> str:
    """Return a temporary folder of this user, the same for all programs. Raises OSError if it can't be made."""
    folder = os.path.join(tempfile.gettempdir(), f"stylegan2-mr-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    if stat.S_ISDIR(os.lstat(folder).st_mode) and distrust(os.lstat(folder)) is None:
        return folder
    return tempfile.mkdtemp(prefix="stylegan2-mr-")  # another user has taken the name


def distrust(state: os.stat_result) -> str | None:
    """Say why a file or folder can't be trusted: a user other than this one and root owns it or may write it.

    Returns None if it can be trusted.
    """
    if state.st_uid not in (0, os.geteuid()):
        return f"belongs to another user (number {state.st_uid})"
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by other users"
    return None

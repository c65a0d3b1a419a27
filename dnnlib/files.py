"""Files that appear under their final name only when they are complete."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dnnlib import config
from dnnlib.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` if the block succeeds, remove it otherwise."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # name the file that the user asked for, not ours
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | os.PathLike, content: Any) -> None:
    write_bytes(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """The bytes of a JSON file; dataclasses are objects."""
    return (json.dumps(config.to_json(content), indent=2) + "\n").encode()


def read_json(path: str | os.PathLike) -> Any:
    """Parse a JSON file; a UserError names the file and the place of what is wrong in it."""
    try:
        return config.parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_existing(path: str | os.PathLike, force: bool) -> Path:
    """Return `path`, unless something is there already and the user did not ask to replace it."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; a file is to be written there: choose another name")
    if path.exists() and not force:
        raise UserError(f"{path} exists already: choose another name, or pass --force to replace it")
    return path


def make_folder(path: str | os.PathLike) -> Path:
    """Create a folder with its parents; a UserError if a file is in the way."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        blocking = next((p for p in (path, *path.parents) if p.is_file()), path)
        raise UserError(f"{blocking}: a file is where a folder is needed; choose another name") from None
    return path


@contextlib.contextmanager
def folder_for(path: str | os.PathLike) -> Iterator[Path]:
    """Make a folder, and take it away again if the block fails with nothing in it."""
    path = Path(path)
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_folder(path)
    try:
        yield path
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in new:
                folder.rmdir()
        raise


@contextlib.contextmanager
def replacing_together(paths: Sequence[Path]) -> Iterator[Callable[[], None]]:
    """Files of these names are replaced all or none. The block gets a function, to be called before the first appears.

    It sets aside what is there; that is removed when the block ends, or put back if it fails. One file alone needs no
    such thing: a rename replaces it or doesn't.
    """
    aside: dict[Path, Path] = {}
    new: list[Path] = []  # names that may belong to new files

    def set_aside() -> None:
        for path in paths if len(paths) > 1 else ():
            if path.exists():
                old = path.with_name(f".{path.name}.{os.getpid()}.old")
                os.replace(path, old)
                aside[path] = old
        new.extend(paths if len(paths) > 1 else ())

    try:
        yield set_aside
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        for path, old in aside.items():
            os.replace(old, path)
        raise
    for old in aside.values():
        old.unlink()

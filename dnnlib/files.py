"""Reading and writing of files and folders. A file appears under its name only when it is complete."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnnlib import config
from dnnlib.errors import UserError
from dnnlib.publish import Staged, recover


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, force: bool = True) -> Iterator[Path]:
    """Yield a temporary path. Its file moves to `path` when the block ends without an error; see `Staged`."""
    with Staged(path, force) as staged:
        yield staged.place(path)


def write_bytes(path: str | os.PathLike, content: bytes, force: bool = True) -> None:
    """Write a file. Raises UserError if it exists and `force` is not set."""
    with Staged(path, force) as staged:
        staged.write(path, content)


def write_json(path: str | os.PathLike, content: Any, force: bool = True) -> None:
    """Write values and dataclasses as a JSON file. Raises UserError if it exists and `force` is not set."""
    write_bytes(path, json_bytes(content), force)


def json_bytes(content: Any) -> bytes:
    """Return the content of a JSON file with these values. Dataclasses become objects."""
    return (json.dumps(config.to_json(content), indent=2) + "\n").encode()


def read_json(path: str | os.PathLike) -> Any:
    """Parse a JSON file. Raises UserError with the file's name and the reason."""
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
    """Return the path of a file to write. Raises UserError for a folder, or for a file that exists without `force`."""
    path = Path(path)
    recover(path)  # first, as this may put an old file back that an interrupted program had set aside
    if path.is_dir():
        raise UserError(f"{path} is a folder; a file is to be written there: choose another name")
    if os.path.lexists(path) and not force:
        raise UserError(f"{path} exists already: choose another name, or pass --force to replace it")
    return path


def make_folder(path: str | os.PathLike) -> Path:
    """Create a folder with its parents. Raises UserError if a file is in the way."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        # The path itself, or the folder above it that is a file.
        blocking = next((p for p in (path, *path.parents) if p.is_file()), path)
        raise UserError(f"{blocking}: a file is where a folder is needed; choose another name") from None
    return path


@contextlib.contextmanager
def folder_for(path: str | os.PathLike) -> Iterator[Path]:
    """Create a folder with its parents. If the block fails, remove the new ones that are empty."""
    path = Path(path)
    new = [folder for folder in (path, *path.parents) if not folder.exists()]  # innermost first
    make_folder(path)
    try:
        yield path
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in new:
                folder.rmdir()
        raise

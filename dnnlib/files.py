"""Files that appear under their final name only when they are complete, and folders for them."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnnlib import config
from dnnlib.errors import UserError
from dnnlib.staged import Staged, recover


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, force: bool = True) -> Iterator[Path]:
    """Yield where to make the file that appears at `path` if the block succeeds; see `Staged`."""
    with Staged(path, force) as staged:
        yield staged.place(path)


def write_bytes(path: str | os.PathLike, content: bytes, force: bool = True) -> None:
    with Staged(path, force) as staged:
        staged.write(path, content)


def write_json(path: str | os.PathLike, content: Any, force: bool = True) -> None:
    write_bytes(path, json_bytes(content), force)


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
    recover(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; a file is to be written there: choose another name")
    if os.path.lexists(path) and not force:
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

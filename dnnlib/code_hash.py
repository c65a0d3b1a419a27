"""Fingerprint of the project's source files. Results depend on them; the version number changes at releases only."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the checkout
_SUFFIXES = (".py", ".cpp", ".h", ".cu")


@functools.cache
def sources_sha256(*names: str, root: Path = ROOT) -> str:
    """SHA-256 over names and contents of source files. names: files and folders below `root`."""
    found = [path for name in names for path in sorted([root / name, *(root / name).rglob("*")])]
    return _digest((path for path in found if path.suffix in _SUFFIXES and path.is_file()), root)


@functools.cache
def program_sha256(*entries: str, root: Path = ROOT) -> str:
    """SHA-256 over the Python files `entries` and all sources below `root` that they import, also through others."""
    return _digest(imported_from(*entries, root=root), root)


def imported_from(*entries: str, root: Path = ROOT) -> list[Path]:
    """The Python files `entries`, and all below `root` that they import at any place, sorted.

    With a package come the sources in other languages in its folder.
    """
    todo, found = [root / entry for entry in entries], set()
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.add(path)
        todo += _imports(path, root)
        if path.name == "__init__.py":
            found |= {p for p in path.parent.rglob("*") if p.suffix in _SUFFIXES and p.suffix != ".py"}
    return sorted(found)


def _imports(path: Path, root: Path) -> Iterator[Path]:
    """The files below `root` that a Python file imports itself."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            # An imported name may be a module of the package.
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield from _files_of(name, root)


def _files_of(module: str, root: Path) -> Iterator[Path]:
    """The file of a module below `root`, if there is one, and those of the packages that it is in."""
    folder = root
    for part in module.split("."):
        for path in (folder / f"{part}.py", folder / part / "__init__.py"):
            if path.is_file():
                yield path
        folder /= part


def _digest(paths: Iterable[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        # The length marks where the content ends, so that no other set of files gives the same bytes.
        digest.update(f"{path.relative_to(root)} {len(content)} ".encode() + content)
    return digest.hexdigest()

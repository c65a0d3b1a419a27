"""Fingerprint of the project's source files. Results depend on them; the version number changes at releases only."""

import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the checkout
_SUFFIXES = (".py", ".cpp", ".h", ".cu")


@functools.cache
def sources_sha256(*names: str, root: Path = ROOT) -> str:
    """SHA-256 over names and contents of source files. names: files and folders below `root`."""
    digest = hashlib.sha256()
    for name in names:
        for path in sorted([root / name, *(root / name).rglob("*")]):
            if path.suffix in _SUFFIXES and path.is_file():
                content = path.read_bytes()
                # The length marks where the content ends, so that no other set of files gives the same bytes.
                digest.update(f"{path.relative_to(root)} {len(content)} ".encode() + content)
    return digest.hexdigest()

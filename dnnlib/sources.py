"""A fingerprint of the project's sources: results depend on them, and the version is the same between two releases."""

import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the checkout
_SUFFIXES = (".py", ".cpp", ".h", ".cu")


@functools.cache
def sources_sha256(*names: str, root: Path = ROOT) -> str:
    """SHA-256 of the names and contents of all source files among `names`, which are files and folders below `root`."""
    digest = hashlib.sha256()
    for name in names:
        for path in sorted([root / name, *(root / name).rglob("*")]):
            if path.suffix in _SUFFIXES and path.is_file():
                content = path.read_bytes()
                digest.update(f"{path.relative_to(root)} {len(content)} ".encode() + content)
    return digest.hexdigest()

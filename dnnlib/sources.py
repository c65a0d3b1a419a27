"""The program's own sources, on which depends what it made: between two releases the version tells nothing."""

import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the checkout, or the folder that packages are installed in
_SUFFIXES = (".py", ".cpp", ".h", ".cu")


@functools.cache
def sources_sha256(*names: str, root: Path = ROOT) -> str:
    """SHA-256 of the names and contents of all source files in these packages and files."""
    digest = hashlib.sha256()
    for name in names:
        for path in sorted([root / name, *(root / name).rglob("*")]):
            if path.suffix in _SUFFIXES and path.is_file():
                content = path.read_bytes()
                digest.update(f"{path.relative_to(root)} {len(content)} ".encode() + content)
    return digest.hexdigest()

"""Words and tables for the terminal."""

import importlib.metadata
import re
from collections.abc import Sequence

from dnnlib.config import shorten
from dnnlib.errors import UserError


def format_time(seconds: float) -> str:
    """Duration as in '12s', '3m 05s', '1h 02m 03s', '2d 03h 04m'."""
    s = int(round(seconds))
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m {s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h {s // 60 % 60:02d}m {s % 60:02d}s"
    return f"{s // 86400}d {s // 3600 % 24:02d}h {s // 60 % 60:02d}m"


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Plain-text table: the first column flush left, the others flush right."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join([lines[0].rstrip(), "  ".join("-" * w for w in widths), *(line.rstrip() for line in lines[1:])])


def parse_integers(text: str, limit: int) -> list[int]:
    """'0-3,7' -> [0, 1, 2, 3, 7]. Raises UserError for anything else, and for numbers from `limit` on."""
    values: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise UserError(f"{text!r} is not a list of whole numbers: write for example 0-63 or 1,5,20-25")
        if (largest := int(match[2] or match[1])) >= limit:
            raise UserError(f"{largest} is too large: numbers go up to {limit - 1}")
        values += range(int(match[1]), int(match[2] or match[1]) + 1)
    return values


def tool_version() -> str:
    """The installed version of this project, for records of how a file was made."""
    try:
        return importlib.metadata.version("stylegan2-mr")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed)"


def count(n: int, noun: str) -> str:
    """As in '1 patient', '2 patients'."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def name_some(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    shown = [name if len(name) <= 60 and name.isprintable() else shorten(name) for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")

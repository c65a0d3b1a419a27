"""Formatting of durations, tables, counts and names for the terminal; parsing of lists of numbers."""

import importlib.metadata
import re
from collections.abc import Sequence

from dnnlib.config import shorten
from dnnlib.errors import UserError


def format_time(seconds: float) -> str:
    """Format a duration as in '12s', '3m 05s', '1h 02m 03s', '2d 03h 04m'."""
    s = int(round(seconds))
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m {s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h {s // 60 % 60:02d}m {s % 60:02d}s"
    return f"{s // 86400}d {s // 3600 % 24:02d}h {s // 60 % 60:02d}m"


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format a plain-text table. The first column is aligned left, the others right."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    # Widest cell of each column.
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join([lines[0].rstrip(), "  ".join("-" * w for w in widths), *(line.rstrip() for line in lines[1:])])


def parse_integers(text: str, limit: int, most: int = 10**6) -> list[int]:
    """Parse a list of numbers and ranges: '0-3,7' -> [0, 1, 2, 3, 7].

    Raises UserError for any other form, for numbers from `limit` on, and for more than `most` numbers.
    """
    values: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*([0-9]+)(?:\s*-\s*([0-9]+))?\s*", item)
        # Python refuses to parse thousands of digits. No limit has 30 digits, so 30 are enough to compare.
        # Without a match, (1, 0) is an empty range, which the next line refuses.
        first, last = (int(n.lstrip("0")[:30] or 0) for n in (match[1], match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise UserError(f"{name_some([text])} is not a list of whole numbers: write for example 0-63 or 1,5,20-25")
        if last >= limit:
            raise UserError(f"{name_some([item])} is too large: numbers go up to {limit - 1}")
        if len(values) + last - first >= most:
            raise UserError(f"{name_some([text])} are more than {most} numbers: take at most {most} at a time")
        values += range(first, last + 1)
    return values


def tool_version() -> str:
    """Return the installed version of this project. Files store it to record how they were made."""
    try:
        return importlib.metadata.version("stylegan2-mr")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed)"


def count(n: int, noun: str) -> str:
    """Format a count as in '1 patient', '2 patients'."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def name_some(names: Sequence[str], most: int = 3) -> str:
    """List the first names, and count the others: 'a, b, c and 4 more'."""
    shown = [name if len(name) <= 60 and name.isprintable() else shorten(name) for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")

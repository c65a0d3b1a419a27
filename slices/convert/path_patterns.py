"""Patterns of file paths below a folder: `sub-{patient}/[ses-{visit}/]anat/sub-{patient}[_*]_{contrast}.nii.gz`.

    {patient}       a part of a folder's or file's name; at a second place it must be the same
    {patient:4}     exactly 4 characters
    {patient:EXPR}  what a regular expression matches
    [...]           may be missing; preferred where it fits
    *               anything within one name

The ending .nii.gz also fits .nii, and the other way round.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from dnnlib.errors import UserError

PLACEHOLDERS = ("case", "patient", "visit", "grade", "contrast")
ENDING = re.compile(r"\.nii(\.gz)?$")
# A placeholder with an optional rule (which may contain one level of braces), a single sign, or plain text.
_TOKEN = re.compile(r"\{(?P<name>\w*)(?::(?P<rule>(?:[^{}]|\{[^{}]*\})*))?\}|[*\[\]{}]|[^*\[\]{}]+")
_ANYTHING = "[^/]+"
_MOST_VARIANTS = 64  # each pair of brackets doubles their number


class _Blank(NamedTuple):
    """A placeholder, or a star."""

    # Empty for a star. A star in a folder above the case is numbered, such as *0, because what it stands for
    # distinguishes cases.
    name: str
    rule: str | None = None  # a width or a regular expression


_Tokens = tuple[str | _Blank, ...]


class Way(NamedTuple):
    """One way to read a path by a pattern."""

    variant: int  # index of the pattern's variant that fits
    values: dict[str, str]  # what the placeholders stand for


@dataclass(frozen=True)
class Pattern:
    """A pattern of files."""

    text: str  # as it was written
    variants: tuple[_Tokens, ...]  # without brackets: first with what may be missing, then without it
    meanings: Mapping[str, str]  # placeholder -> regular expression

    @classmethod
    def parse(cls, text: str, option: str = "--pattern", meanings: Mapping[str, str] | None = None) -> Pattern:
        """Parse a pattern. Raises UserError if it is none.

        option: where the text comes from, for errors. meanings: regular expressions of placeholders without a rule.
        """
        # Repeated slashes become one, and ./ at the beginning of a folder is dropped.
        text = re.sub(r"(?<![^/])\./+", "", re.sub(r"(?<=.)/+", "/", text))
        if text.startswith("/") or {"..", ""} & set(text.split("/")):
            raise UserError(f"{option} {text}: expected a path relative to --source, without ..")
        if not ENDING.search(text):
            raise UserError(f"{option} {text}: expected a name that ends in .nii.gz or .nii")
        try:
            variants = tuple(dict.fromkeys(map(_tidied, _variants(_tokens(ENDING.sub("", text))))))
            rules = _rules({blank for tokens in variants for blank in tokens if isinstance(blank, _Blank)})
        except UserError as error:
            raise UserError(f"{option} {text}: {error}") from None
        if not all({"case", "patient"} & set(_names(tokens)) for tokens in variants):
            raise UserError(f"{option} {text}: needs {{case}} or {{patient}}, which tells whose files they are")
        return cls(text, variants, {**(meanings or {}), **rules})

    def with_meanings(self, meanings: Mapping[str, str]) -> Pattern:
        """The same pattern, with meanings for placeholders that have none yet."""
        return replace(self, meanings={**meanings, **self.meanings})

    @property
    def names(self) -> set[str]:
        """The placeholders in any variant."""
        return set().union(*self.names_of_variants)

    @property
    def names_of_variants(self) -> list[set[str]]:
        """The placeholders in each variant."""
        return [set(_names(tokens)) for tokens in self.variants]

    @property
    def forms(self) -> list[str]:
        """The pattern without brackets, one text for each variant."""
        blanks = {name: f"{{{name}}}" for name in self.names}
        return [self.fill(blanks, n) for n in range(len(self.variants))]

    @property
    def depth(self) -> int:
        """The largest number of folders above a file."""
        # Slashes are in the texts only: placeholders and stars stay within one name.
        return max("".join(t for t in tokens if isinstance(t, str)).count("/") for tokens in self.variants)

    @property
    def ending(self) -> str:
        return ".nii.gz" if self.text.endswith(".gz") else ".nii"

    def ways(self, file: str) -> list[Way]:
        """All ways in which the pattern fits a relative path, with or without .gz."""
        stem = ENDING.sub("", file)
        # For each variant that fits at all (which is quick to tell), all its readings.
        return [
            Way(n, values)
            for n, fits in enumerate(self._expressions)
            if fits.fullmatch(stem)
            for values in self._readings(self.variants[n], stem)
        ]

    def fill(self, values: Mapping[str, str], variant: int | None = None) -> str:
        """The path that the pattern makes of these values, with stars for unknown ones.

        variant: its index; by default the first variant with known placeholders only.
        """
        if variant is None:
            variant = next((n for n, names in enumerate(self.names_of_variants) if names <= set(values)), 0)
        pieces = (t if isinstance(t, str) else values.get(t.name, "*") for t in self.variants[variant])
        return "".join(pieces) + self.ending

    @functools.cached_property
    def _expressions(self) -> list[re.Pattern]:
        """A regular expression for each variant, which tells whether it fits at all."""
        found = []
        for tokens in self.variants:
            pieces, seen = [], set()
            for token in tokens:
                if isinstance(token, str):
                    pieces.append(re.escape(token))
                elif token.name not in PLACEHOLDERS:  # a star
                    pieces.append("[^/]*")
                else:
                    new = f"(?P<{token.name}>{self._meaning(token.name)})"
                    # At a second place, a reference to the first.
                    pieces.append(f"(?P={token.name})" if token.name in seen else new)
                    seen.add(token.name)
            found.append(re.compile("".join(pieces)))
        return found

    def _meaning(self, name: str) -> str:
        return self.meanings.get(name, _ANYTHING)

    def _readings(self, tokens: _Tokens, stem: str) -> list[dict[str, str]]:
        """All combinations of values with which a variant fits."""
        # A search through all possibilities, token by token. A state is (position reached, values of the placeholders
        # so far). re alone would give only one of the combinations.
        states: set[tuple[int, tuple[tuple[str, str], ...]]] = {(0, ())}
        for token, follower in itertools.zip_longest(tokens, tokens[1:], fillvalue=""):
            states = {state for start, values in states for state in self._next(token, follower, stem, start, values)}
        return [dict(values) for end, values in sorted(states) if end == len(stem)]

    def _next(
        self, token: str | _Blank, follower: str | _Blank, stem: str, start: int, values: tuple
    ) -> Iterator[tuple[int, tuple]]:
        """Yield the states after a token that starts at `start`. follower: the next token, which limits its end."""
        known = token if isinstance(token, str) else dict(values).get(token.name)
        if isinstance(token, str) or known is not None:
            assert known is not None
            if stem.startswith(known, start):
                yield start + len(known), values
            return
        # An unknown blank may end anywhere up to the next slash.
        slash = stem.find("/", start)
        for end in range(start, (slash if slash >= 0 else len(stem)) + 1):
            if isinstance(follower, str) and not stem.startswith(follower, end):
                continue
            if not token.name:  # a star without a name: its value isn't kept
                yield end, values
            elif token.name[0] == "*" or re.fullmatch(self._meaning(token.name), stem[start:end]):
                yield end, (*values, (token.name, stem[start:end]))


def _names(tokens: _Tokens) -> list[str]:
    """Placeholders, without stars."""
    return [token.name for token in tokens if isinstance(token, _Blank) and token.name in PLACEHOLDERS]


def _tokens(stem: str) -> Iterator[str | _Blank]:
    """Split a pattern into text, brackets, stars and placeholders."""
    if "**" in stem:
        raise UserError("** is more than one folder; write */ for each")
    for match in _TOKEN.finditer(stem):
        if match["name"] is not None:
            if match["name"] not in PLACEHOLDERS:
                raise UserError(f"{{{match['name']}}} is unknown; there are {_braces()}")
            yield _Blank(match["name"], match["rule"])
        elif match[0] in "{}":
            raise UserError(f"has a brace without its counterpart; there are {_braces()}")
        else:
            yield _Blank("") if match[0] == "*" else match[0]


def _variants(tokens: Iterator[str | _Blank], inside: bool = False) -> list[_Tokens]:
    """Expand brackets: all sequences without them. inside: read up to the closing bracket.

    Recursive calls share the iterator, so each continues where the other stopped.
    """
    found: list[_Tokens] = [()]
    for token in tokens:
        if token == "]":
            if inside:
                return found
            raise UserError("has a bracket ] without its counterpart; [...] is what may be missing")
        more = [*_variants(tokens, inside=True), ()] if token == "[" else [(token,)]
        # Every beginning so far, continued in every way.
        found = [(*one, *other) for one in found for other in more]
        if len(found) > _MOST_VARIANTS:
            raise UserError(f"too many brackets; they leave more than {_MOST_VARIANTS} possibilities")
    if inside:
        raise UserError("has a bracket [ without its counterpart; [...] is what may be missing")
    return found


def _tidied(tokens: _Tokens) -> _Tokens:
    """Clean up a variant: join texts, drop double slashes, and number the stars in folders above a case.

    A folder left out with its brackets leaves a double slash. Folders above a case are those above the first
    placeholder for a case or patient.
    """
    joined: list[str | _Blank] = []
    for token in tokens:
        before = joined[-1] if joined else ""
        if isinstance(token, str) and isinstance(before, str):
            text = (before + token).replace("//", "/")
            # At the beginning of a path, no slash is needed at all.
            joined[-1:] = [text.lstrip("/") if len(joined) < 2 else text]
        else:
            joined.append(token)
    tokens = tuple(token for token in joined if token != "")
    # Index of the first placeholder for a case or patient, and of the last text before it that ends a folder.
    case = next((n for n, t in enumerate(tokens) if isinstance(t, _Blank) and t.name in ("case", "patient")), 0)
    last = max((n for n, t in enumerate(tokens[:case]) if isinstance(t, str) and "/" in t), default=0)
    return tuple(_Blank(f"*{n}") if token == _Blank("") and n < last else token for n, token in enumerate(tokens))


def _rules(blanks: set[_Blank]) -> dict[str, str]:
    """Placeholder -> regular expression, for placeholders with a rule."""
    found: dict[str, str] = {}
    for name, rule in sorted((b.name, b.rule) for b in blanks if b.rule is not None):
        if name in ("contrast", "grade"):
            raise UserError(f"{{{name}}} takes neither a width nor an expression")
        if found.setdefault(name, rule) != rule:
            raise UserError(f"{{{name}}} is given as {found[name]} and as {rule}")
    for name, rule in found.items():
        found[name] = f"[^/]{{{rule}}}" if rule.isdecimal() else rule
        try:
            empty = re.compile(f"(?P<{name}>{found[name]})").fullmatch("")
        except (re.error, OverflowError) as error:
            expected = "expected a number of characters or a regular expression"
            raise UserError(f"{{{name}:{rule}}}: {expected} ({error})") from None
        if empty:
            raise UserError(f"{{{name}:{rule}}} may stand for nothing; expected one character or more")
    return found


def _braces(names: Sequence[str] = PLACEHOLDERS) -> str:
    return ", ".join(f"{{{name}}}" for name in names)

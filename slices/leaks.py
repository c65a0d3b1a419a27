"""Leak guard: never test a network on patients it was trained on, directly or through a GAN that saw them.

Archives of generated slices, exported files, snapshots and U-Nets all carry the names of these patients. Patients are
compared by name only. One person under two names goes unnoticed, unless the names are alike.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from dnnlib.errors import UserError
from dnnlib.text import count, name_some
from slices.archive.format import TEST
from slices.archive.reader import ArchiveReader


def refuse_leaks(archives: Sequence[ArchiveReader], exclude: Iterable[str | os.PathLike]) -> None:
    """Raise UserError unless a network may be trained on these archives.

    exclude: archives whose patients the network must not learn from.
    """
    for archive in archives:
        refuse_test_part(archive)
    for path in exclude:
        excluded = ArchiveReader(path)
        for archive in archives:
            refuse_shared(archive, excluded)


def doubts(archives: Sequence[ArchiveReader], exclude: Iterable[str | os.PathLike]) -> list[str]:
    """Warnings of what `refuse_leaks` can't notice: names on both sides that are alike, but not equal."""
    excluded = {patient for path in exclude for patient in ArchiveReader(path).info.known_patients}
    return warn_of_alike({patient for archive in archives for patient in archive.info.known_patients}, excluded)


def warn_of_alike(some: Iterable[str], others: Iterable[str]) -> list[str]:
    """A list of one warning if names on both sides are alike, else an empty one."""
    # Sorted and in a set, because one pair may come from either side.
    pairs = [" and ".join(pair) for pair in sorted({tuple(sorted(pair)) for pair in alike(some, others)})]
    return [f"warning: names so alike that they may be of one patient: {name_some(pairs)}"] if pairs else []


def alike(some: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ only in case, punctuation or leading zeros, such as TCGA_DU_7294 and tcga-du-07294."""
    by_core = defaultdict(set)
    for name in others:
        by_core[_core(name)].add(name)
    # Names with the same core, except the name itself.
    return [(name, other) for name in sorted(set(some)) for other in sorted(by_core[_core(name)] - {name})]


def _core(name: str) -> str:
    """A name's letters and numbers. A hyphen stays between two numbers, because p1-23 is not p12-3."""
    core = ""
    # Runs of digits, and runs of letters: [^\W\d_] is \w without digits and _.
    for run in re.findall(r"\d+|[^\W\d_]+", unicodedata.normalize("NFKC", name).casefold()):
        core += ("-" if core[-1:].isdecimal() and run.isdecimal() else "") + (run.lstrip("0") or "0")
    return core or name


def refuse_test_part(archive: ArchiveReader) -> None:
    """Raise UserError if any slice belongs to the test part of a split."""
    held_out = [record.patient for record in archive.info.slices if record.part == TEST]
    if held_out:
        raise UserError(
            f"{archive.path}: {len(held_out)} of its {count(len(archive), 'slice')} ({len(set(held_out))} of its "
            f"{count(len(archive.info.patients), 'patient')}) are of the test part, on which nothing may be trained; "
            "give the training part, train.zip of dataset_tool.py convert"
        )


def refuse_shared(archive: ArchiveReader, excluded: ArchiveReader) -> None:
    """Raise UserError if a network that learns from `archive` would know a patient of `excluded`.

    In both archives, the patients that a generator saw count like the patients of the slices, because a fake may be a
    copy of a real slice.
    """
    if shared := shared_patients(archive.info.known_patients, excluded.info.known_patients):
        behind = "; for fakes, the patients that their GAN learned from count" if excluded.info.seen else ""
        raise UserError(
            f"{archive.path} must share no patient with {excluded.path} (--exclude{behind}), but holds "
            f"{describe_shared(shared, archive.info.patients)}; train on an archive without them"
        )


def refuse_known(network: str, patients: Iterable[str], excluded: ArchiveReader, option: str) -> None:
    """Raise UserError if a network, from whose weights another one is to begin, knows a patient of `excluded`.

    patients: all that the network learned from. network, option: names of the network and of the archive's option.
    """
    if shared := shared_patients(patients, excluded.info.known_patients):
        raise UserError(
            f"{network} learned from {name_some(shared)}, of {excluded.path} ({option}): a network that begins "
            "with its weights may make fakes that resemble them; begin with one that does not know them"
        )


def refuse_known_test_part(network: str, patients: Iterable[str], archive: ArchiveReader) -> None:
    """Raise UserError if a network knows a patient that the split of `archive`, a training part, keeps for testing."""
    split = archive.info.made.get("split")
    # Other programs may have written anything into `made`.
    held_out = split.get(TEST) if isinstance(split, dict) else None
    names = [name for name in held_out if isinstance(name, str)] if isinstance(held_out, list) else []
    if shared := shared_patients(patients, names):
        raise UserError(
            f"{network} learned from {name_some(shared)}, of the test part of the split of {archive.path}: a network "
            "that begins with its weights may make fakes that resemble them; begin with one that does not know them"
        )


def shared_patients(some: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """Patients on both sides, sorted."""
    return tuple(sorted(set(some) & set(others)))


def describe_shared(shared: Sequence[str], own: Collection[str]) -> str:
    """Describe how shared patients came into training data: by their own slices, or through a GAN's fakes.

    own: patients of the slices, without those that only a GAN saw.
    """
    own = set(own)
    ways = {
        "slices of": [p for p in shared if p in own],
        "generated slices of a GAN that learned from": [p for p in shared if p not in own],
    }
    return ", and ".join(f"{way} {name_some(patients)}" for way, patients in ways.items() if patients)

"""Advice for a folder without cases: what it contains, which layout it resembles, and which options may help."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.text import count, name_some
from slices.convert.cases import Case, Files, cases_of
from slices.convert.path_patterns import ENDING
from slices.convert.releases import MASK, OWN, RELEASE_NAMES, RELEASES, Release, describe_as_own, other_challenge

_NNUNET = re.compile(r"(?P<images>images\w+)/[^/]+_(?P<channel>\d{4})\.nii(\.gz)?")
_BIDS = re.compile(r"sub-[^/]+/(ses-[^/]+/)?(?P<kind>\w+)/sub-[^/]*_(?P<suffix>[A-Za-z0-9]+)\.nii(\.gz)?")
_OF_ANY_NAMES = tuple(release.any_case for release in RELEASES)
_DECATHLON = re.compile(r"imagesTr/[^/]+\.nii(\.gz)?")


def explain(source: Path, files: Files, release: Release | None) -> str:
    """The message for a folder without cases. release: the one that was expected; None for any of RELEASES."""
    if release is None:
        expected = f"no cases found of any release: {', '.join(RELEASE_NAMES)}"
    else:
        expected = f"no cases found of {release.title}; expected in it {_where(release)}"
    # The first guess that isn't empty. Guesses are a generator: later ones, which are slower, may not be needed.
    advice = next(filter(None, _guesses(source, files.read, release)), "")
    if not advice and release is None:
        advice = "Describe other data with --contrasts, --labels and --pattern"
    return f"{source}: {expected}; {_there(source, files)}{'. ' * bool(advice)}{advice}"


def _where(release: Release) -> str:
    """Where the files of a release are expected, in words."""
    masks = [release.mask_pattern] if release.mask_pattern and release.schema.num_maps else []
    names = [*release.names.values(), *([MASK] if release.schema.num_maps and not masks else [])]
    contrasts = "" if release.in_one_file else f" with {{contrast}} one of {', '.join(names)}"
    return " or ".join(release.images.forms) + contrasts + "".join(f", and {mask}" for mask in masks)


def _there(source: Path, files: Files) -> str:
    """What the folder contains, in words."""
    there = sorted(os.listdir(source))
    words = f"no NIfTI file is there, but {name_some(there)}" if there else "the folder is empty"
    if files.read:
        words = f"there {_are(files.read)} {count(len(files.read), 'NIfTI file')}, such as {_some(files.read)}"
    if files.unread:
        unread = f"{count(len(files.unread), 'file')} such as {files.unread[0]} {_are(files.unread)} not read"
        words += f"; {unread}, only names that end in .nii.gz or .nii are"
    return words


def _are(files: Sequence[str]) -> str:
    return "is" if len(files) == 1 else "are"


def _some(files: Sequence[str]) -> str:
    """The first and the last file, as examples."""
    return ", ".join(dict.fromkeys([files[0], files[-1]]))  # dict: only once if they are the same


def _guesses(source: Path, files: Sequence[str], release: Release | None) -> Iterator[str]:
    """Yield advice, the most likely to help first; empty where a guess doesn't apply."""
    own = release if release is not None and release.name == OWN else None
    if own is not None:
        yield _other_contrasts(files, own)
        yield _layout(files)
    else:
        yield _another_release(source, files, release)
    yield _elsewhere(source, files, RELEASES if release is None else [release.any_case])
    yield _challenge(files)
    if own is None:
        yield _layout(files)
        yield _unknown_names(source, files)
    for folder, inside in _below(files):
        if _layout(inside) or _unknown_names(source / folder, inside):
            yield f"Its folder {folder} looks more like it: give that as --source"


def _cases(source: Path, files: Sequence[str], release: Release) -> list[Case]:
    """The cases of a release; none if the files can't be grouped."""
    with contextlib.suppress(UserError):
        return cases_of(source, files, release)[0]
    return []


def _below(files: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, files below it, relative to it) for every folder, the highest first."""
    for depth in range(1, max((file.count("/") for file in files), default=0) + 1):
        below: dict[str, list[str]] = {}
        for file in files:
            parts = file.split("/")
            if len(parts) > depth:
                below.setdefault("/".join(parts[:depth]), []).append("/".join(parts[depth:]))
        yield from below.items()


def _elsewhere(source: Path, files: Sequence[str], rows: Sequence[Release]) -> str:
    """Advice for cases in folders further down, or if `source` lies inside the right folder."""
    # Folders with cases. A generator, because the first two are enough.
    right = (folder for folder, inside in _below(files) if any(_cases(source / folder, inside, row) for row in rows))
    if first := next(right, None):
        depth = first.count("/") + 1
        if (second := next(right, None)) is None or second.count("/") >= depth:
            return f"Its folder {first} holds cases: give that as --source"
        pattern = f"{'*/' * depth}{rows[0].pattern}"
        own = f", or write --pattern '{pattern}' (of patients with visits, '{{patient}}/{{visit}}/…')"
        own *= rows[0].name == OWN  # only users who wrote a pattern can change it
        return f"Its folders {first} and {second} hold cases: give one as --source{own}"
    # Would there be cases if one, two or three folders above were part of the paths?
    above = source.absolute().parts[1:]
    for depth in range(1, min(3, len(above)) + 1):
        inside = ["/".join((*above[-depth:], file)) for file in files]
        if any(_cases(source, inside, row) for row in rows):
            return f"It lies inside the right folder: give {Path(*source.absolute().parts[:-depth])} as --source"
    return ""


def _challenge(files: Sequence[str]) -> str:
    """Advice for names of a BraTS challenge that is not in RELEASES."""
    for file in files:
        for name in file.split("/"):
            if title := other_challenge(name):
                # Options for the first known layout that fits any of the files.
                like = (describe_as_own(row) for row in _OF_ANY_NAMES if any(map(row.images.ways, files)))
                options = next(like, "--contrasts … --labels … --pattern …")
                return (
                    f"{ENDING.sub('', name)} is a name of {title}. This is not one of the known releases, and "
                    f"its label values mean something else: describe the data: {options}"
                )
    return ""


def _other_contrasts(files: Sequence[str], release: Release) -> str:
    """Advice for a description whose contrasts have other names in files."""
    # The same pattern with anything for {contrast} tells what stands there.
    pattern = replace(release, known={}).images
    anything = replace(pattern, meanings={**pattern.meanings, "contrast": "[^/]+"})
    named = {way.values["contrast"] for file in files for way in anything.ways(file) if "contrast" in way.values}
    if not named:
        return ""
    shown = ", ".join(sorted(named, key=lambda name: (len(name), name))[:5])
    return f"Files that fit the pattern call their contrasts {shown}: say with --contrasts name=… what files call them"


def _another_release(source: Path, files: Sequence[str], release: Release | None) -> str:
    """Advice for files that bear the names of other releases than the one expected."""
    found = [row.name for row in RELEASES if release and _cases(source, files, row)]
    return f"These are names of other releases: --release {' or '.join(found)}" if found else ""


def _layout(files: Sequence[str]) -> str:
    """Advice for the layouts of nnU-Net, BIDS and the Decathlon."""
    if nnunet := [match for match in map(_NNUNET.fullmatch, files) if match]:
        channels = ",".join(f"…={name}" for name in sorted({match["channel"] for match in nnunet}))
        return (
            f"It is laid out as for nnU-Net: --contrasts {channels} --labels … --pattern "
            "'imagesTr/{case}_{contrast}.nii.gz' --mask-pattern 'labelsTr/{case}.nii.gz'"
        )
    if bids := [match for match in map(_BIDS.fullmatch, files) if match]:
        suffixes = sorted({match["suffix"] for match in bids})
        return (
            f"It is laid out as by BIDS, with {', '.join(suffixes[:8])}: --contrasts t1=T1w,… --labels … --pattern "
            f"'sub-{{patient}}/[ses-{{visit}}/]{bids[0]['kind']}/sub-{{patient}}[_ses-{{visit}}][_*]_{{contrast}}.nii.gz'"
        )
    if any(map(_DECATHLON.fullmatch, files)):
        return (
            "It is laid out like the Decathlon, but not named like its Task01_BrainTumour: --contrasts in the order of "
            "the files' channels, --labels … --pattern 'imagesTr/{case}.nii.gz' --mask-pattern 'labelsTr/{case}.nii.gz'"
        )
    return ""


def _unknown_names(source: Path, files: Sequence[str]) -> str:
    """Advice for cases that are laid out like a release, but have unknown names or no masks."""
    like = [(row, cases) for row in _OF_ANY_NAMES if (cases := _cases(source, files, row))]
    if not like:
        return ""
    row, cases = like[0]
    name, title = cases[0].name, row.title.partition(" 20")[0]
    masks = [case.mask for case in cases if case.mask is not None]  # never empty: every release has masks
    if not any(mask.is_file() for mask in masks):
        return (
            f"{name} and the other cases are laid out like {title}, but there are no masks such as "
            f"{masks[0].name}: is it a validation set? Describe it without --labels: "
            f"{describe_as_own(row, labels=False)}"
        )
    by_values: dict[str, str] = {}  # meaning of the label values -> a release with it; 2018 stands for its equals
    for row, _ in like:
        values = ", ".join(f"{c.value} {c.title}" for c in row.schema.classes)
        if values not in by_values or row.name == "2018":
            by_values[values] = row.name
    choices = ", ".join(f"--release {name} ({values})" for values, name in by_values.items())
    return (
        f"{name} and the other cases are laid out like {title}, but no release has such names, so the meaning of their "
        f"label values is unknown: choose {choices}, or describe the data: {describe_as_own(row)}"
    )

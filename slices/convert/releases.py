"""Releases of data: how their files are named, and what their label values mean. Users can describe others.

A release is never recognized by label values: 4 is enhancing tumor in BraTS 2018 and a resection cavity in BraTS 2024,
and the Decathlon swaps 1 and 2.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dnnlib.errors import UserError
from dnnlib.text import name_some
from slices.convert.path_patterns import Pattern
from slices.schema import BRATS, LesionClass, Region, Schema

GRADES = ("HGG", "LGG")
AUTO, OWN = "auto", "custom"
IGNORE = "ignore"  # name in --labels for values of masks that count as background
MASK = "seg"  # what stands for {contrast} in the name of a label map
_LARGEST_VALUE = 2**31 - 1  # of a label: the largest int32


@dataclass(frozen=True)
class Release:
    """A data set: one row of RELEASES, or one that the user described."""

    name: str
    title: str
    schema: Schema
    pattern: str  # paths of images (path_patterns.py); without {contrast}, one 4-D file holds all contrasts
    names: Mapping[str, str]  # contrast of the schema -> what files call it
    mask_pattern: str | None = None  # paths of label maps; None: `pattern` with MASK for {contrast}
    known: Mapping[str, str] = field(default_factory=dict)  # placeholder -> regular expression, to recognize names
    odd_masks: Mapping[str, str] = field(default_factory=dict)  # case -> file name of a label map that fits no pattern
    grid: tuple[int, int, int] | None = None  # shape of its volumes, if all have the same
    head_masks: Pattern | None = None  # paths of head masks, if --head asks for them

    @property
    def any_case(self) -> Release:
        """The same release with any names of cases and patients, for users who say which release it is."""
        return replace(self, known={key: value for key, value in self.known.items() if key == "visit"})

    @property
    def in_one_file(self) -> bool:
        """Whether all contrasts of a case are channels of one 4-D file."""
        return "{contrast}" not in self.pattern

    @functools.cached_property
    def images(self) -> Pattern:
        """The pattern of images, and of masks that are named like contrasts."""
        files = [*self.names.values(), *([] if self.mask_pattern else [MASK])]
        meanings = {"grade": "|".join(GRADES), "contrast": "|".join(map(re.escape, files)), **self.known}
        return Pattern.parse(self.pattern, "--pattern", meanings)

    @property
    def masks(self) -> Pattern | None:
        """The pattern of label maps, if they are not named like contrasts."""
        return None if self.mask_pattern is None else Pattern.parse(self.mask_pattern, "--mask-pattern")


# ---- The table -----------------------------------------------------------------------------------------------------

_GRID = (240, 240, 155)
_BY_NAME = {name: name for name in BRATS.contrasts}
_GLI = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}
_FLAT = "{case}/{case}_{contrast}.nii.gz"
_GRADED = "[{grade}/]" + _FLAT
_VISITS = "{patient}-{visit}/{patient}-{visit}-{contrast}.nii.gz"
_VISIT_NAMES = {"patient": r"BraTS-GLI-\d{5}", "visit": r"\d{3}"}


def _with_values(**values: int) -> Schema:
    """BraTS's schema for files with other label values."""
    return replace(BRATS, classes=tuple(replace(c, value=values[c.name]) for c in BRATS.classes))


POST_TREATMENT = Schema(
    contrasts=BRATS.contrasts,
    classes=(
        LesionClass("NETC", "non-enhancing tumor core", 1),
        LesionClass("SNFH", "surrounding non-enhancing FLAIR hyperintensity", 2),
        LesionClass("ET", "enhancing tumor", 3),
        LesionClass("RC", "resection cavity", 4),
    ),
    regions=(
        Region("WT", ("NETC", "SNFH", "ET")),
        Region("TC", ("NETC", "ET")),
        Region("ET", ("ET",)),
        Region("RC", ("RC",)),
    ),
)

RELEASES = (
    Release("2017", "BraTS 2017", BRATS, _GRADED, _BY_NAME, known={"case": r"Brats17_\w+"}, grid=_GRID),
    Release("2018", "BraTS 2018", BRATS, _GRADED, _BY_NAME, known={"case": r"Brats18_\w+"}, grid=_GRID),
    Release("2019", "BraTS 2019", BRATS, _GRADED, _BY_NAME, known={"case": r"BraTS19_\w+"}, grid=_GRID),
    Release(
        "2020",
        "BraTS 2020",
        BRATS,
        _FLAT,
        _BY_NAME,
        known={"case": r"BraTS20_Training_\d{3}"},
        grid=_GRID,
        odd_masks={"BraTS20_Training_355": "W39_1998.09.19_Segm.nii"},
    ),
    Release("2021", "BraTS 2021", BRATS, _FLAT, _BY_NAME, known={"case": r"BraTS2021_\d{5}"}, grid=_GRID),
    Release(
        "2023-gli", "BraTS 2023 GLI", _with_values(NCR=1, ED=2, ET=3), _VISITS, _GLI, known=_VISIT_NAMES, grid=_GRID
    ),
    Release(
        "2024-gli",
        "BraTS 2024 GLI (post-treatment)",
        POST_TREATMENT,
        _VISITS,
        _GLI,
        known=_VISIT_NAMES,
        grid=(182, 218, 182),
    ),
    Release(
        "msd",
        "Medical Segmentation Decathlon, Task01_BrainTumour",
        _with_values(NCR=2, ED=1, ET=3),
        "imagesTr/{case}.nii.gz",
        {"flair": "FLAIR", "t1": "T1w", "t1ce": "t1gd", "t2": "T2w"},
        mask_pattern="labelsTr/{case}.nii.gz",
        known={"case": r"BRATS_\d{3}"},
        grid=_GRID,
    ),
    Release("phantom", "phantoms of dataset_tool.py", BRATS, _GRADED, _BY_NAME, known={"case": r"Phantom\d+_\d+_1"}),
)
RELEASE_NAMES = tuple(release.name for release in RELEASES)


def release_of_name(name: str) -> Release:
    return next(release for release in RELEASES if release.name == name)


# Cases of other challenges are named like those of BraTS GLI 2023 and later, except for this word.
_CHALLENGES = {
    "PED": "BraTS's challenge on pediatric tumors",
    "MET": "BraTS's challenge on metastases",
    "MEN": "BraTS's challenge on meningioma",
    "SSA": "BraTS's challenge on patients in sub-Saharan Africa",
    "AFRICA": "BraTS's challenge on patients in sub-Saharan Africa",
    "GOAT": "BraTS's challenge across tumors",
}
_CHALLENGE = re.compile(rf"BraTS[-_]?(?:20\d\d[-_]?)?({'|'.join(_CHALLENGES)})S?[-_]", re.IGNORECASE)


def other_challenge(name: str) -> str | None:
    """The challenge, not among RELEASES, that names cases like this; None if none is known."""
    match = _CHALLENGE.match(name)
    return _CHALLENGES[match[1].upper()] if match else None


def describe_as_own(release: Release, labels: bool = True) -> str:
    """Options that describe data laid out like a release, with label values for the user to fill in."""
    contrasts = ",".join(name if name == there else f"{name}={there}" for name, there in release.names.items())
    masks = f" --mask-pattern '{release.mask_pattern}'" if release.mask_pattern and labels else ""
    values = " --labels …" if labels else ""
    return f"--contrasts {contrasts}{values} --pattern '{release.pattern}'{masks}"


# ---- A data set that the user describes ----------------------------------------------------------------------------


def describe_release(
    contrasts: str, pattern: str, labels: str | None = None, mask_pattern: str | None = None, regions: str | None = None
) -> Release:
    """Make a release of the options that describe it. Raises UserError if they don't fit each other.

    contrasts: such as "t1,flair=FLAIR", where files call flair FLAIR; for a 4-D file, in the order of its channels.
    labels: such as "core=1+4,edema=2,ignore=3"; None for data without label maps. regions: such as "whole=core+edema".
    """
    pairs = [_pair(text, "--contrasts", "t1,flair=FLAIR") for text in contrasts.split(",")]
    names = {name: in_files or name for name, in_files in pairs}
    if len(names) < len(pairs):
        raise UserError(f"--contrasts {contrasts}: a name comes twice")
    values = _values(labels)
    ignored = values.pop(IGNORE, ())
    if labels is not None and not values:
        raise UserError(f"--labels {labels}: names no class; without label maps, leave the option out")
    classes = tuple(LesionClass(name, name, first, tuple(more)) for name, (first, *more) in values.items())
    schema = Schema(tuple(names), classes, _regions(regions), ignored)
    if mask_pattern is not None and not schema.classes:
        raise UserError("--mask-pattern needs --labels, which says what the values of masks mean")
    release = Release(OWN, "your data", schema, pattern, names, mask_pattern)
    # Two contrasts of one name in files, or one that is called like the masks.
    claimed = Counter([*names.values(), *([MASK] if schema.classes and mask_pattern is None else [])])
    if not release.in_one_file and (twice := [name for name, n in claimed.items() if n > 1]):
        masks = " (where masks lie, unless --mask-pattern says otherwise)" if twice[0] == MASK else ""
        raise UserError(
            f"--contrasts {contrasts}: {twice[0]}{masks} would stand for two channels: each needs its own name"
        )
    known = {*release.images.names, "case"} - {"contrast"}
    if release.masks is not None and (unknown := sorted(release.masks.names - known)):
        raise UserError(f"--mask-pattern {mask_pattern}: {{{unknown[0]}}} is not known from --pattern {pattern}")
    if schema.classes and release.in_one_file and mask_pattern is None:
        raise UserError(f"--pattern {pattern} names one file for all contrasts: add --mask-pattern for the masks")
    return release


def _pair(text: str, option: str, example: str) -> tuple[str, str | None]:
    """Split "name=value" into both, or "name" into the name and None."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not name or (equals and not value):
        raise UserError(f"{option}: expected names such as {example}, found {text!r}")
    return name, value or None


def _values(labels: str | None) -> dict[str, tuple[int, ...]]:
    """Read --labels: class, or IGNORE -> its values in masks."""
    found: dict[str, tuple[int, ...]] = {}
    for text in labels.split(",") if labels is not None else []:
        name, values = _pair(text, "--labels", "lesion=1,edema=2")
        name = IGNORE if name.lower() == IGNORE else name
        numbers = [value.strip() for value in (values or "").split("+")]
        if not all(number.isdecimal() for number in numbers):
            expected = "expected a name and its whole number in the masks, such as lesion=1, or several, as in core=1+4"
            raise UserError(f"--labels: {expected}, not {text!r}")
        if large := [number for number in numbers if len(number) > 30 or int(number) > _LARGEST_VALUE]:
            raise UserError(f"--labels: {name_some(large, most=1)} is no label value; the most is {_LARGEST_VALUE}")
        if name in found:
            both = "+".join(map(str, (*found[name], *map(int, numbers))))
            raise UserError(f"--labels: {name} comes twice; several values of one class are written {name}={both}")
        found[name] = tuple(int(number) for number in numbers)
    owners: dict[int, str] = {0: "the background"}  # label value -> class
    for name, value in ((name, value) for name, values in found.items() for value in values):
        if value in owners:
            twice = "comes twice" if owners[value] == name else f"stands for {owners[value]} and for {name}"
            raise UserError(f"--labels: {value} {twice}: lesion classes need different label values, none of them 0")
        owners[value] = name
    return found


def _regions(regions: str | None) -> tuple[Region, ...]:
    """Read --regions."""
    found = []
    for text in regions.split(",") if regions is not None else []:
        name, value = _pair(text, "--regions", "whole=lesion+edema")
        if value is None:
            raise UserError(f"--regions: expected a name and its classes, such as whole=lesion+edema, not {text!r}")
        found.append(Region(name, tuple(part.strip() for part in value.split("+"))))
    return tuple(found)

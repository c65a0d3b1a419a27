"""Fakes over time: sheets made small enough for a page, and their first rows below each other."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from dnnlib.pages.data_uris import data_uri
from dnnlib.system import plain_text
from slices.render import first_row
from training.report.run_folder import RunFolder, Sheet, number, show_kimg

MOST_STEPS = 24  # of the slider
MOST_ROWS = 8  # of the strip
_WIDTHS = (1400, 1100, 850)  # pixels of a sheet, from the best to the smallest
_QUALITY = 80  # of WebP
_LARGEST = 60_000_000  # pixels of a sheet that is opened; no training draws more than a tenth


@dataclass(frozen=True)
class Picture:
    """A picture inside the page."""

    uri: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class RunFakes:
    """Sheets of a run: one for each step of the slider, the newest one by then; None before the first."""

    name: str
    place: int
    told: tuple[str, ...]  # of each step, such as "16 kimg"
    pictures: tuple[Picture | None, ...]

    @property
    def uris(self) -> list[str | None]:
        """Addresses of the pictures."""
        return [None if picture is None else picture.uri for picture in self.pictures]


@dataclass(frozen=True)
class Row:
    """The first slices of a sheet."""

    label: str
    picture: Picture


@dataclass(frozen=True)
class Strip:
    """The first fakes of a run at several times."""

    name: str
    place: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Fakes:
    """What the page shows of fakes."""

    steps: tuple[str, ...]  # of the slider, in words
    runs: tuple[RunFakes, ...]
    newest: tuple[Row, ...]  # the first fakes of each run, below each other; empty for a single one
    strips: tuple[Strip, ...]
    left_out: int  # sheets that lie between those that are shown
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Named:
    """A sheet that does not change over time, with the runs that it belongs to."""

    runs: tuple[str, ...]
    picture: Picture


def evenly(items: Sequence, most: int) -> list:
    """Up to so many items, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]


def make_fakes(runs: Sequence[RunFolder], room: int) -> Fakes:
    """Choose and encode sheets, with as many as fit into `room` bytes."""
    times = sorted({sheet.kimg for run in runs for sheet in run.sheets})
    for choice in _choices(runs, times, room):
        found = tuple(
            _run_fakes(place, run, choice.steps, choice.encoder) for place, run in enumerate(runs) if run.sheets
        )
        if choice.encoder.bytes <= room:
            break
    steps, damaged = choice.steps, choice.encoder.damaged
    most_rows = max(2, min(MOST_ROWS, 4 * MOST_ROWS // len(runs)))
    strips = tuple(strip for place, run in enumerate(runs) if (strip := _strip(place, run, most_rows)) is not None)
    return Fakes(
        tuple(f"{show_kimg(kimg)} kimg" for kimg in steps),
        found,
        tuple(_newest(runs)) if len(runs) > 1 else (),
        strips,
        len(times) - len(steps),
        tuple(
            f"{path.name} of {plain_text(path.parent.name)} is no picture that can be read." for path in sorted(damaged)
        ),
    )


def _newest(runs: Sequence[RunFolder]) -> Iterator[Row]:
    for run in runs:
        if run.sheets and (image := row_of(run, run.sheets[-1].path)) is not None:
            alt = f"First fakes of {run.name} at {show_kimg(run.sheets[-1].kimg)} kimg"
            yield Row(run.name, encode(image, _WIDTHS[0], alt))


@dataclass(frozen=True)
class _Choice:
    """How much of the sheets is shown."""

    steps: list[float]  # kimg
    encoder: _Encoder


def _choices(runs: Sequence[RunFolder], times: Sequence[float], room: int) -> Iterator[_Choice]:
    """How many steps, and how wide: from the best to the smallest, without those that are clearly too large."""
    newest = [run.sheets[-1] for run in runs if run.sheets]
    for most in (MOST_STEPS, 16, 11, 7, 4, 2):
        for width in _WIDTHS:
            encoder, steps = _Encoder(width), evenly(times, most)
            for sheet in newest:
                encoder(sheet, _told(sheet))
            if encoder.bytes * len(steps) <= 1.5 * room or (most, width) == (2, _WIDTHS[-1]):
                yield _Choice(steps, encoder)


class _Encoder:
    """Encodes every sheet once, and counts bytes."""

    def __init__(self, width: int) -> None:
        self.width, self.bytes = width, 0
        self.damaged: set[Path] = set()
        self._known: dict[Path, Picture | None] = {}

    def __call__(self, sheet: Sheet, alt: str) -> Picture | None:
        if sheet.path not in self._known:
            image = open_picture(sheet.path)
            if image is None:
                self.damaged.add(sheet.path)
            picture = None if image is None else encode(image, self.width, alt)
            self._known[sheet.path] = picture
            self.bytes += len(picture.uri) if picture else 0
        return self._known[sheet.path]


def _run_fakes(place: int, run: RunFolder, steps: Sequence[float], encode: _Encoder) -> RunFakes:
    told, pictures = [], []
    for step in steps:
        until = [sheet for sheet in run.sheets if sheet.kimg <= step]
        sheet = until[-1] if until else None
        told.append(f"{show_kimg(sheet.kimg)} kimg" if sheet else "no sheet yet")
        pictures.append(encode(sheet, _told(sheet)) if sheet else None)
    return RunFakes(run.name, place, tuple(told), tuple(pictures))


def _told(sheet: Sheet) -> str:
    return f"Sheet of fakes at {show_kimg(sheet.kimg)} kimg"


def _strip(place: int, run: RunFolder, most: int) -> Strip | None:
    """The first slices of a run's sheets at several times."""
    rows = []
    for sheet in evenly(run.sheets, most):
        if (image := row_of(run, sheet.path)) is not None:
            alt = f"First fakes of {run.name} at {show_kimg(sheet.kimg)} kimg"
            rows.append(Row(show_kimg(sheet.kimg), encode(image, _WIDTHS[0], alt)))
    if (reals := run.picture("reals.png")) and (image := row_of(run, reals)) is not None and rows:
        rows.append(Row("real", encode(image, _WIDTHS[0], f"Real slices of {run.name}")))
    return Strip(run.name, place, tuple(rows)) if rows else None


def make_named(runs: Sequence[RunFolder], file: str, words: str, same: Callable[[RunFolder], str]) -> tuple[Named, ...]:
    """A picture of each run. words: what it shows. same: runs with the same value share one picture."""
    owners: dict[str, list[RunFolder]] = {}
    for run in runs:
        if run.picture(file):
            owners.setdefault(same(run), []).append(run)
    found = []
    for owned in owners.values():
        names = tuple(run.name for run in owned)
        if (image := open_picture(owned[0].path / file)) is not None:
            found.append(Named(names, encode(image, _WIDTHS[0], f"{words} of {', '.join(names)}")))
    return tuple(found)


def data_of(run: RunFolder) -> str:
    """What runs on the same data share."""
    return run.data or str(run.path)


def augmentation_of(run: RunFolder) -> str:
    """What runs share that augment the same slices in the same manner."""
    return f"{data_of(run)} {run.options.get('seed')} {run.options.get('augment.pipe')}"


# --- pictures ---------------------------------------------------------------------------------------------------------


def open_picture(path: Path) -> Image.Image | None:
    """Read a picture as RGB. None: it is damaged, gone, or far too large."""
    try:
        with Image.open(path) as file:
            if file.width * file.height > _LARGEST:
                return None
            return file.convert("RGB")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return None


def row_of(run: RunFolder, path: Path) -> Image.Image | None:
    """The first row of strips of a sheet. None: its form is not known."""
    known = [number(run.options.get(f"generator.{name}")) for name in ("resolution", "num_contrasts", "num_maps")]
    image = open_picture(path)
    if image is None or any(one is None for one in known):
        return None
    resolution, contrasts, maps = (int(one) for one in known if one is not None)
    if resolution < 1 or contrasts < 1:
        return None
    box = first_row(image.size, resolution, contrasts + (1 if maps else 0))
    return image.crop(box) if box else None


def encode(image: Image.Image, width: int, alt: str) -> Picture:
    """Encode a picture as WebP, made smaller if it is wider than this."""
    if image.width > width:
        size = (width, max(1, round(image.height * width / image.width)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=_QUALITY)
    return Picture(data_uri("image/webp", file.getvalue()), *image.size, alt)

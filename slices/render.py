"""Pictures of joint slices: label overlays, panels of one slice, contact sheets of many.

Arrays are stored joint slices (uint8, [C + K, H, W]) or class indices ([H, W], 0 for the background). Small slices are
enlarged by a whole factor: contrasts are interpolated, labels are not.
"""

from __future__ import annotations

import functools
import math
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dnnlib.files import atomic_path
from slices.schema import Schema

RGB = tuple[int, int, int]

# One color per lesion class, in the schema's order. The first six are those of Okabe and Ito; the others were chosen
# so that any two stay apart (CIELAB distance > 16) in normal vision and in simulated protan-, deuter- and tritanopia.
_CODES = "D55E00 56B4E9 F0E442 009E73 CC79A7 0072B2 8700F0 C3FFA5 00FFD2 874B2D 9678FF A5B45A 784B78 5A4BC3 FF0F69"
# Written as a tuple of three, because tuple(code) has no fixed length for a type checker.
PALETTE: tuple[RGB, ...] = tuple((code[0], code[1], code[2]) for code in map(bytes.fromhex, _CODES.split()))
FILL = 0.5  # opacity inside an outline: both the color and the lesion under it must be visible
MAX_WIDTH = 2600  # pixels of a picture; more would be scaled down in a browser or on a page
PANEL_TILE, SHEET_TILE = 192, 96  # smallest edge of one picture of a slice, in pixels

_CANVAS, _TEXT, _FAINT = (22, 24, 28), (236, 238, 242), (168, 174, 184)
_MARGIN, _GAP, _STRIP_GAP = 10, 4, 14  # pixels: around all, between pictures, between strips of a sheet
_TITLE, _HEADER, _LEGEND = 18, 15, 14  # font sizes, pixels


def class_color(index: int) -> RGB:
    """Color of a lesion class, by its index from 1. After the fifteenth, colors repeat."""
    return PALETTE[(index - 1) % len(PALETTE)]


def overlay(background: np.ndarray, class_indices: np.ndarray, schema: Schema) -> np.ndarray:
    """Draw lesion classes over a picture: translucent inside, opaque along the outline.

    background: uint8 [H, W]; class_indices: [H, W]. Returns uint8 RGB [H, W, 3].
    """
    assert background.shape == class_indices.shape, (background.shape, class_indices.shape)
    gray = np.repeat(background[..., None], 3, axis=-1)  # [H, W, 3]
    colors = _colors(schema)[class_indices]  # [H, W, 3]
    filled = np.rint(gray * (1 - FILL) + colors * FILL).astype(np.uint8)
    rgb = np.where((class_indices > 0)[..., None], filled, gray)
    return np.where(outline(class_indices)[..., None], colors, rgb)


def label_map(class_indices: np.ndarray, schema: Schema) -> np.ndarray:
    """Class indices [H, W] -> uint8 RGB [H, W, 3], background black."""
    return _colors(schema)[class_indices]


def panel(stored: np.ndarray, schema: Schema, title: str = "") -> Image.Image:
    """Draw all pictures of one joint slice [C + K, H, W]: contrasts, label map, labels over the last contrast."""
    assert stored.shape[0] == schema.num_channels, (stored.shape, schema.describe())
    edge = stored.shape[-1] * _enlargement(stored.shape[-1], PANEL_TILE)
    faces = _faces(stored, schema, edge)
    # n pictures take n·edge + (n − 1)·gap pixels. One gap is added to the room so that each picture takes edge + gap.
    columns = min(len(faces), max(1, (MAX_WIDTH - 2 * _MARGIN + _GAP) // (edge + _GAP)))
    rows = math.ceil(len(faces) / columns)
    header, title_height = _HEADER + 6, _TITLE + 10 if title else 0
    width = 2 * _MARGIN + columns * (edge + _GAP) - _GAP
    legend = _layout_legend(schema, width)
    height = 2 * _MARGIN + title_height + rows * (header + edge + _GAP) - _GAP + legend.height

    canvas = Image.new("RGB", (width, height), _CANVAS)
    if title:
        _write(canvas, title, (_MARGIN, _MARGIN - 2), width - 2 * _MARGIN, _TITLE, _TEXT)
    for n, (name, picture) in enumerate(faces):
        x = _MARGIN + n % columns * (edge + _GAP)
        y = _MARGIN + title_height + n // columns * (header + edge + _GAP)
        _write(canvas, name, (x, y), edge, _HEADER, _TEXT, centered=True)
        canvas.paste(picture, (x, y + header))
    _draw_legend(canvas, legend, height - _MARGIN - legend.height)
    return canvas


def sheet(
    stored: np.ndarray, schema: Schema, columns: int | None = None, row_titles: Sequence[str] = ()
) -> Image.Image:
    """Draw a contact sheet of joint slices [N, C + K, H, W]: each is a strip of its contrasts and the overlay.

    columns: strips beside each other; by default the number that makes the sheet about 3:2. Strips that don't fit into
    MAX_WIDTH are made smaller. row_titles: written to the left of the rows, one for each.
    """
    assert stored.ndim == 4 and len(stored), stored.shape
    assert stored.shape[1] == schema.num_channels, (stored.shape, schema.describe())
    resolution = stored.shape[-1]
    tiles = _tiles(schema)
    edge = resolution * _enlargement(resolution, SHEET_TILE)
    columns = columns or _handy_columns(len(stored), tiles, edge)
    titles = [_plain(title) for title in row_titles]
    titles_width = max((math.ceil(_font(_HEADER).getlength(title)) + _STRIP_GAP for title in titles), default=0)
    edge = _sheet_edge(resolution, tiles, columns, titles_width)
    strip, rows = tiles * (edge + 1) - 1, math.ceil(len(stored) / columns)
    assert len(titles) in (0, rows), (titles, rows)

    header = _HEADER + 6
    width = 2 * _MARGIN + titles_width + columns * (strip + _STRIP_GAP) - _STRIP_GAP
    legend = _layout_legend(schema, width)
    height = 2 * _MARGIN + header + rows * (edge + _GAP) - _GAP + legend.height
    canvas = Image.new("RGB", (width, height), _CANVAS)
    for row, title in enumerate(titles):
        corner = _MARGIN, _MARGIN + header + row * (edge + _GAP) + (edge - _HEADER) // 2
        _write(canvas, title, corner, titles_width, _HEADER, _TEXT)
    for n, one in enumerate(stored):
        left = _MARGIN + titles_width + n % columns * (strip + _STRIP_GAP)
        top = _MARGIN + header + n // columns * (edge + _GAP)
        faces = [face for face in _faces(one, schema, edge) if face[0] != _MAP_NAME]
        for t, (name, picture) in enumerate(faces):
            x = left + t * (edge + 1)
            if n < columns:  # names stand above the first row only
                _write(canvas, name, (x, _MARGIN), edge, _HEADER, _TEXT, centered=True)
            canvas.paste(picture, (x, top))
    _draw_legend(canvas, legend, height - _MARGIN - legend.height)
    return canvas


def first_row(size: tuple[int, int], resolution: int, tiles: int) -> tuple[int, int, int, int] | None:
    """Where the first row of strips lies on a sheet of this size (width, height), as left, top, right, bottom.

    resolution: of its slices. tiles: pictures of a strip. None: `sheet` draws none of this size.
    """
    width, height = size
    top = _MARGIN + _HEADER + 6
    for columns in range(1, MAX_WIDTH // (tiles + 1)):
        edge = _sheet_edge(resolution, tiles, columns)
        if 2 * _MARGIN + columns * (tiles * (edge + 1) - 1 + _STRIP_GAP) - _STRIP_GAP == width and top + edge <= height:
            return _MARGIN, top, width - _MARGIN, top + edge
    return None


def _sheet_edge(resolution: int, tiles: int, columns: int, titles_width: int = 0) -> int:
    """Edge of a picture on a sheet, in pixels."""
    edge = resolution * _enlargement(resolution, SHEET_TILE)
    room = MAX_WIDTH - 2 * _MARGIN - titles_width - (columns - 1) * _STRIP_GAP
    return max(1, min(edge, room // (columns * tiles) - 1))


def fitting_columns(schema: Schema, resolution: int) -> int:
    """How many strips fit beside each other on a sheet at full size, without titles of rows; at least one."""
    return _fitting(_tiles(schema), resolution * _enlargement(resolution, SHEET_TILE))


def save(image: Image.Image, path: str | os.PathLike, force: bool = True) -> None:
    """Write a PNG, which appears when it is complete. Another file of its name is replaced only with `force`."""
    with atomic_path(path, force) as temporary:
        image.save(temporary, format="PNG")


# --- one slice ------------------------------------------------------------------------------------------------------

_MAP_NAME = "label map"  # the picture that sheets leave out


def _faces(stored: np.ndarray, schema: Schema, edge: int) -> list[tuple[str, Image.Image]]:
    """(name, picture of edge×edge pixels) for everything to show of a slice. Without classes, contrasts only."""
    contrasts, indices = schema.split(stored)
    scaled = [_resize(contrast, edge, Image.Resampling.LANCZOS) for contrast in contrasts]
    faces = [(name, Image.fromarray(s)) for name, s in zip(schema.contrasts, scaled, strict=True)]
    if schema.num_maps:
        indices = _resize(indices, edge, Image.Resampling.NEAREST)
        faces.append((_MAP_NAME, Image.fromarray(label_map(indices, schema))))
        name, background = schema.contrasts[schema.shown], scaled[schema.shown]
        faces.append((f"{name} + labels", Image.fromarray(overlay(background, indices, schema))))
    return faces


def _resize(picture: np.ndarray, edge: int, how: Image.Resampling) -> np.ndarray:
    if picture.shape == (edge, edge):
        return picture
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((edge, edge), how))


def _enlargement(resolution: int, smallest: int) -> int:
    """The smallest whole factor that makes `resolution` pixels at least `smallest`."""
    return max(1, math.ceil(smallest / resolution))


def _colors(schema: Schema) -> np.ndarray:
    """Color of each class index: uint8 [K, 3], or [1, 3] without classes. The background is black."""
    return np.array([(0, 0, 0), *(class_color(i) for i in range(1, max(1, schema.num_maps)))], np.uint8)


def outline(indices: np.ndarray) -> np.ndarray:
    """Lesion pixels next to a lower class, bool [H, W].

    Only the higher class of two draws their border. Otherwise a thin rim would be nothing but outline.
    """
    # Four views of the padded picture, shifted by one pixel: the neighbors above, below, left and right.
    padded = np.pad(indices, 1)
    neighbors = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.minimum.reduce(neighbors) < indices


# --- layout ---------------------------------------------------------------------------------------------------------


def _tiles(schema: Schema) -> int:
    """Number of pictures of a strip, which stand one pixel apart: the contrasts and the overlay."""
    return schema.num_contrasts + (1 if schema.num_maps else 0)


def _fitting(tiles: int, edge: int) -> int:
    return max(1, (MAX_WIDTH - 2 * _MARGIN + _STRIP_GAP) // (tiles * (edge + 1) + _STRIP_GAP))


def _handy_columns(count: int, tiles: int, edge: int) -> int:
    """The number of strips beside each other that makes a sheet closest to 3:2, within MAX_WIDTH."""
    strip, most = tiles * (edge + 1) + _STRIP_GAP, min(count, _fitting(tiles, edge))
    # Columns -> width / height of the sheet. Ratios are compared by their logarithms: 3:1 is as far off as 3:4.
    shape = {c: c * strip / (math.ceil(count / c) * (edge + _GAP)) for c in range(1, most + 1)}
    return min(shape, key=lambda c: abs(math.log(shape[c] / 1.5)))


@dataclass(frozen=True)
class _Entry:
    """A lesion class in a legend."""

    index: int  # of the class
    text: str
    x: int  # pixels
    y: int  # pixels from the legend's top


@dataclass(frozen=True)
class _Legend:
    """The place of each class in a legend."""

    entries: tuple[_Entry, ...]
    height: int  # pixels; 0 without classes


_SWATCH, _LINE = _LEGEND, _LEGEND + 9


def _layout_legend(schema: Schema, width: int) -> _Legend:
    """Place the classes beside each other, on as many lines as they need."""
    entries: list[_Entry] = []
    x, line = _MARGIN, 0
    for index, c in enumerate(schema.classes, start=1):
        text = _plain(c.name if c.title in ("", c.name) else f"{c.name}  {c.title}")
        needed = _SWATCH + 7 + math.ceil(_font(_LEGEND).getlength(text))
        if x > _MARGIN and x + needed > width - _MARGIN:
            x, line = _MARGIN, line + 1
        entries.append(_Entry(index, text, x, _GAP + 6 + line * _LINE))
        x += needed + 24
    return _Legend(tuple(entries), _GAP + 6 + (line + 1) * _LINE if entries else 0)


def _draw_legend(canvas: Image.Image, legend: _Legend, top: int) -> None:
    """Draw a legend at `top` pixels from the upper edge."""
    draw = ImageDraw.Draw(canvas)
    for entry in legend.entries:
        x, y = entry.x, top + entry.y
        draw.rectangle((x, y + 1, x + _SWATCH - 1, y + _SWATCH), fill=class_color(entry.index))
        room = canvas.width - _MARGIN - x - _SWATCH - 7
        _write(canvas, entry.text, (x + _SWATCH + 7, y - 1), room, _LEGEND, _FAINT)


def _write(
    canvas: Image.Image,
    text: str,
    corner: tuple[int, int],
    room: int,
    size: int,
    color: RGB,
    centered: bool = False,
) -> None:
    """Write one line. Text wider than `room` pixels is made smaller, then cut at its end."""
    text = _plain(text)
    while size > 9 and _font(size).getlength(text) > room:
        size -= 1
    font = _font(size)
    if font.getlength(text) > room:
        # A first guess by the average width of a letter; names from files may be long.
        text = text[: int(len(text) * room / font.getlength(text)) + 1]
        while text and font.getlength(text + "…") > room:
            text = text[:-1]
        text += "…"
    x = corner[0] + (room - font.getlength(text)) / 2 if centered else corner[0]
    ImageDraw.Draw(canvas).text((x, corner[1]), text, font=font, fill=color)


def _plain(text: str) -> str:
    """Text in ASCII. Pillow's own font, the only one that is always there, draws little else."""
    # NFKD splits é into e and an accent, which is dropped.
    simpler = unicodedata.normalize("NFKD", text.replace("×", "x").replace("−", "-").replace("–", "-"))
    kept = (c for c in simpler if not unicodedata.combining(c))
    return "".join(c if c.isascii() else "?" for c in kept)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow without FreeType"
    return font

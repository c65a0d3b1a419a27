"""Slices and labels as data URIs."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dnnlib.pages.data_uris import data_uri, picture_uri
from slices.render import FILL, class_color, outline, overlay
from slices.schema import Schema

LOSSLESS_UP_TO = 100  # pixels of an edge; strips of larger slices are lossy


def labels_uri(classes: np.ndarray, schema: Schema) -> str:
    """Class indices [H, W] as a transparent PNG to lay over a slice: translucent classes with opaque outlines."""
    count = schema.num_maps
    # Colors of the picture: background and classes, translucent, then the same, opaque.
    colors = [(0, 0, 0), *(class_color(i) for i in range(1, count))]
    clear = [0, *[round(255 * FILL)] * (count - 1)]
    image = Image.fromarray(np.where(outline(classes), classes + count, classes).astype(np.uint8))
    image.putpalette([level for color in 2 * colors for level in color])
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes(clear + [255] * count), optimize=True)
    return data_uri("image/png", file.getvalue())


def strip_uri(stored: np.ndarray, schema: Schema) -> str:
    """A stored joint slice [C + K, H, W]: its contrasts side by side, then the labels over the one that is shown."""
    contrasts, classes = schema.split(stored)
    grays = [np.repeat(contrast[..., None], 3, axis=-1) for contrast in contrasts]  # RGB [H, W, 3]
    strip = np.concatenate([*grays, overlay(contrasts[schema.shown], classes, schema)], axis=1)
    return picture_uri(strip, lossless=stored.shape[-1] <= LOSSLESS_UP_TO)

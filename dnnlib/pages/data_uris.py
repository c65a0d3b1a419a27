"""Files and pictures as data URIs, which need no file beside the page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

QUALITY = 82  # of lossy WebP


def data_uri(kind: str, content: bytes) -> str:
    """Bytes as an address. kind: such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture_uri(pixels: np.ndarray, lossless: bool) -> str:
    """A picture, uint8 [H, W] or RGB [H, W, 3], as WebP."""
    file = io.BytesIO()
    how = {"lossless": True, "quality": 60} if lossless else {"quality": QUALITY}
    Image.fromarray(pixels).save(file, "WEBP", **how)
    return data_uri("image/webp", file.getvalue())

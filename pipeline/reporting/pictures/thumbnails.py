"""Small pictures for the page, each within a limit of bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from pipeline.records import Pixels
from pipeline.reporting.pixels import to_image

QUALITIES = (75, 55, 35, 20, 8)
"""WebP qualities to try, best first; only pictures of noise need the lowest."""


@dataclass(frozen=True)
class ThumbnailForm:
    """Size limits of a thumbnail."""

    side_px: int
    """Maximum length of the longer side; smaller pictures keep their size."""
    limit_bytes: int
    """Maximum size of the file in bytes; a picture that exceeds it at every quality is scaled down."""


def thumbnail(picture: Pixels, form: ThumbnailForm) -> bytes:
    """Return `picture`, uint8 (H, W, 1 or 3), as a WebP file of the best quality that `form` allows."""
    image = to_image(picture)
    image.thumbnail((form.side_px, form.side_px), Image.Resampling.LANCZOS)
    while True:
        for quality in QUALITIES:
            data = _webp(image, quality)
            if len(data) <= form.limit_bytes:
                return data
        if min(image.size) < 8:
            return data
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)


def _webp(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()

"""Small pictures for the page, each within a bound of bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from pipeline.reporting.pictures.pixels import Pixels, to_image

QUALITIES = (75, 55, 35, 20, 8)
"""Of WebP, tried from the best; pictures of noise need the worst of them."""


@dataclass(frozen=True)
class ThumbnailForm:
    """How large a thumbnail may be."""

    side_px: int
    """Longest side; smaller pictures keep their size."""
    limit_bytes: int
    """Bytes that it should not exceed; a picture that cannot be encoded so small is made smaller."""


def thumbnail(picture: Pixels, form: ThumbnailForm) -> bytes:
    """`picture`, uint8 (H, W, 1 or 3), as a WebP file: as good as `form` allows."""
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

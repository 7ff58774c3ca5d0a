"""Files of small crawls: photographs of noise, broken files, and the metadata of an instagram-scraper dump."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def photograph(seed: int = 0, width: int = 48, height: int = 48, details: int = 4) -> Image.Image:
    """Return an RGB image of random colours that depends on `seed`, with `details` patches along each side."""
    coarse = np.random.default_rng(seed).integers(0, 256, (details, details, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    """Return the content of an image file of `image`; `options` are those of Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header claims `width` x `height` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def node(name: str, **values: Any) -> dict[str, Any]:
    """Return the metadata of the file `name`, as instagram-scraper writes it, with `values` in place of defaults."""
    return {
        "id": f"id of {name}",
        "shortcode": f"code of {name}",
        "display_url": f"https://cdn.example/a/{name}",
        "urls": [f"https://cdn.example/b/{name}?size=l"],
        "taken_at_timestamp": 1_600_000_000,
        "edge_media_to_caption": {"edges": [{"node": {"text": f"caption of {name} #Trevi"}}]},
        **values,
    }


def write_metadata(folder: Path, nodes: list[Any]) -> None:
    """Write `nodes` to `folder` as the metadata file of an instagram-scraper dump."""
    (folder / "tag.json").write_text(json.dumps({"GraphImages": nodes}), encoding="utf-8")

"""Between pictures (uint8, height x width x channels) and the model's images (float32 BCHW in [0, 1])."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

WEBP_QUALITY = 70
"""Of animations, where nothing else is said."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def to_images(pictures: Sequence[Pixels]) -> Tensor:
    """(B, C, H, W) float32 in [0, 1] from B pictures of one size, each uint8 (H, W, C)."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def to_pictures(images_BCHW: Tensor) -> Pixels:
    """(B, H, W, C) uint8 from images in [0, 1]; values outside are clamped, what is not a number is black."""
    bytes_BHWC = (images_BCHW.detach().cpu().nan_to_num(0).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    return bytes_BHWC.contiguous().numpy()


def to_image(picture: Pixels) -> Image.Image:
    """The RGB Pillow image of a picture with one or three channels."""
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).convert("RGB")


def read_png(data: bytes) -> Pixels:
    """The picture in the content of a PNG file, as `png` made it."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.atleast_3d(np.asarray(image))


def animated_webp(images: Sequence[Image.Image], durations_ms: Sequence[int], quality: int = WEBP_QUALITY) -> bytes:
    """`images` of one size, each shown as long as it says, as the content of a WebP file that begins again."""
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=images[1:],
        duration=list(durations_ms),
        loop=0,
        quality=quality,
        method=4,
    )
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    """`image` as the content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

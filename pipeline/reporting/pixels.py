"""Conversions between pictures (uint8 HWC), images of the model (float32 BCHW in [0, 1]), and files."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.records import Pixels

WEBP_QUALITY = 70
"""Default quality of animations."""


def to_images(pictures: Sequence[Pixels]) -> Tensor:
    """Return images, float32 (B, C, H, W) in [0, 1], from B pictures of one size, each uint8 (H, W, C)."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def to_pictures(images_BCHW: Tensor) -> Pixels:
    """Return pictures, uint8 (B, H, W, C), from images in [0, 1]; values outside are clamped, and NaN becomes black."""
    bytes_BHWC = (images_BCHW.detach().cpu().nan_to_num(0).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    return bytes_BHWC.contiguous().numpy()


def to_image(picture: Pixels) -> Image.Image:
    """Return the RGB Pillow image of a picture with one or three channels."""
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).convert("RGB")


def read_png(data: bytes) -> Pixels:
    """Return the picture in the content of a PNG file that `png` encoded."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.atleast_3d(np.asarray(image))


def animated_webp(images: Sequence[Image.Image], durations_ms: Sequence[int], quality: int = WEBP_QUALITY) -> bytes:
    """Return the content of an endlessly repeating WebP animation of `images`, which must have the same size."""
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
    """Return the content of a PNG file of `image`."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

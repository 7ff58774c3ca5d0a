"""A prototype in motion: how it becomes each of its nearest images, as an animated picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.clustering.model.method import ClusteringMethod
from pipeline.reporting.pictures.mosaic import CRISP_BELOW_PX
from pipeline.reporting.pictures.pixels import Pixels, animated_webp, to_image, to_pictures

STEPS = 10
"""Pictures from the prototype to an image."""
STEP_MS, HOLD_MS, PHOTO_MS = 60, 350, 700
"""How long a step, the prototype and its aligned form, and the photo itself are shown."""
FADE = 3
"""Pictures between the aligned prototype and the photo."""


def draw_motion(
    method: ClusteringMethod, cluster: int, parameters: dict[str, Tensor], photos: list[Pixels], side_px: int
) -> bytes:
    """An animated WebP file of prototype `cluster`: it moves onto each photo, fades into it, and comes back.

    Args:
        method: the trained model.
        cluster: the prototype.
        parameters: per active module (B, p), those of the photos.
        photos: B pictures, uint8 (H, W, C); without any, the file shows the prototype as it is.
        side_px: side of the animation; smaller pictures are enlarged with hard pixel edges.
    """
    images, durations_ms = zip(*_frames(method, cluster, parameters, photos), strict=True)
    return animated_webp([_sized(picture, side_px) for picture in images], durations_ms)


def onto(method: ClusteringMethod, cluster: int, parameters: dict[str, Tensor], amounts_T: Tensor) -> Pixels:
    """(T, H, W, C) uint8: the prototype, transformed by parts of one image's parameters.

    Args:
        method: the trained model.
        cluster: the prototype.
        parameters: per active module (p,).
        amounts_T: 0 is the prototype as it is, since all-zero parameters are the identity; 1 is aligned.
    """
    scaled = {name: amounts_T[:, None] * beta for name, beta in parameters.items()}
    return to_pictures(method.transform(torch.full((len(amounts_T),), cluster), scaled))


def _frames(
    method: ClusteringMethod, cluster: int, parameters: dict[str, Tensor], photos: list[Pixels]
) -> Iterator[tuple[Pixels, int]]:
    """Pictures and how long each is shown, in ms."""
    if not photos:
        yield onto(method, cluster, {}, torch.zeros(1))[0], HOLD_MS
    # Slow at both ends, as things move that have weight.
    amounts_T = 0.5 - 0.5 * torch.cos(torch.pi * torch.linspace(0, 1, STEPS + 1))
    for index, photo in enumerate(photos):
        there = onto(method, cluster, {name: beta[index] for name, beta in parameters.items()}, amounts_T)
        fade = [_mixed(there[-1], photo, step / (FADE + 1)) for step in range(1, FADE + 1)]
        yield there[0], HOLD_MS
        yield from ((picture, STEP_MS) for picture in there[1:-1])
        yield there[-1], HOLD_MS
        yield from ((picture, STEP_MS) for picture in fade)
        yield photo, PHOTO_MS
        yield from ((picture, STEP_MS) for picture in [*reversed(fade), *there[:0:-1]])


def _mixed(first: Pixels, second: Pixels, part: float) -> Pixels:
    return np.rint((1 - part) * first + part * second.astype(np.float64)).astype(np.uint8)


def _sized(picture: Pixels, side_px: int) -> Image.Image:
    image = to_image(picture)
    crisp = min(image.size) < min(CRISP_BELOW_PX, side_px)
    return image.resize((side_px, side_px), Image.Resampling.NEAREST if crisp else Image.Resampling.LANCZOS)

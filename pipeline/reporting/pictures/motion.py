"""Animation of a prototype that is transformed into each of its nearest images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.clustering.model.method import ClusteringMethod
from pipeline.records import Pixels
from pipeline.reporting.pictures.drawing import CRISP_BELOW_PX
from pipeline.reporting.pixels import animated_webp, to_image, to_pictures

STEPS = 10
"""Number of steps from the prototype to its aligned form."""
STEP_MS, HOLD_MS, PHOTO_MS = 60, 350, 700
"""Durations for which a step, the prototype or its aligned form, and a photo are shown."""
FADE = 3
"""Number of frames of the cross-fade between the aligned prototype and the photo."""


def draw_motion(
    method: ClusteringMethod, cluster: int, parameters: dict[str, Tensor], photos: list[Pixels], side_px: int
) -> bytes:
    """Return an animated WebP file in which a prototype aligns with each photo, fades into it, and returns.

    Args:
        method: the trained model.
        cluster: index of the prototype.
        parameters: transformation parameters (B, p) of the photos, for each active module.
        photos: B pictures, uint8 (H, W, C); if there are none, the file shows the untransformed prototype.
        side_px: side of the animation in px; small pictures are enlarged with hard pixel edges.
    """
    images, durations_ms = zip(*_frames(method, cluster, parameters, photos), strict=True)
    return animated_webp([_sized(picture, side_px) for picture in images], durations_ms)


def transform_gradually(
    method: ClusteringMethod, cluster: int, parameters: dict[str, Tensor], amounts_T: Tensor
) -> Pixels:
    """Return the prototype transformed by fractions of the parameters of one image, uint8 (T, H, W, C).

    Args:
        method: the trained model.
        cluster: index of the prototype.
        parameters: transformation parameters (p,) of the image, for each active module.
        amounts_T: fractions of the parameters. 0 gives the untransformed prototype, since all-zero parameters are the
            identity; 1 gives the prototype aligned to the image.
    """
    scaled = {name: amounts_T[:, None] * beta for name, beta in parameters.items()}
    return to_pictures(method.transform(torch.full((len(amounts_T),), cluster), scaled))


def _frames(
    method: ClusteringMethod, cluster: int, parameters: dict[str, Tensor], photos: list[Pixels]
) -> Iterator[tuple[Pixels, int]]:
    """Yield each picture with its duration in ms."""
    if not photos:
        yield transform_gradually(method, cluster, {}, torch.zeros(1))[0], HOLD_MS
    # Ease in and out: the motion is slow at both ends.
    amounts_T = 0.5 - 0.5 * torch.cos(torch.pi * torch.linspace(0, 1, STEPS + 1))
    for index, photo in enumerate(photos):
        photo_parameters = {name: beta[index] for name, beta in parameters.items()}
        steps = transform_gradually(method, cluster, photo_parameters, amounts_T)
        fade = [_mixed(steps[-1], photo, step / (FADE + 1)) for step in range(1, FADE + 1)]
        yield steps[0], HOLD_MS
        yield from ((picture, STEP_MS) for picture in steps[1:-1])
        yield steps[-1], HOLD_MS
        yield from ((picture, STEP_MS) for picture in fade)
        yield photo, PHOTO_MS
        yield from ((picture, STEP_MS) for picture in [*reversed(fade), *steps[:0:-1]])


def _mixed(first: Pixels, second: Pixels, part: float) -> Pixels:
    return np.rint((1 - part) * first + part * second.astype(np.float64)).astype(np.uint8)


def _sized(picture: Pixels, side_px: int) -> Image.Image:
    image = to_image(picture)
    crisp = min(image.size) < min(CRISP_BELOW_PX, side_px)
    return image.resize((side_px, side_px), Image.Resampling.NEAREST if crisp else Image.Resampling.LANCZOS)

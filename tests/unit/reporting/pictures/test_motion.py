from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from pipeline.clustering.model.build import build_method
from pipeline.clustering.model.dti import DTI
from pipeline.config import ClusteringConfig
from pipeline.records import Pixels
from pipeline.reporting.pictures.motion import FADE, HOLD_MS, PHOTO_MS, STEP_MS, STEPS, draw_motion, transform_gradually
from pipeline.reporting.pixels import to_pictures

SIDE = 32


def method() -> DTI:
    y, x = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    picture = torch.stack([x, y, x * y])
    model = build_method(
        ClusteringConfig(transforms=["color", "projective"]), torch.stack([picture, 1 - picture]), seed=0
    )
    model.activate(2)
    return model.eval()


def parameters() -> dict[str, torch.Tensor]:
    color, projective = torch.zeros(2, 6), torch.zeros(2, 8)
    color[:, 0], projective[:, 2] = -0.4, 0.3
    return {"color": color, "projective": projective}


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=["WEBP"])


def timed(image: Image.Image) -> list[tuple[float, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]]:
    """Return the end time of each frame in ms and its pixels; the encoder merges identical frames."""
    frames, end = [], 0.0
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        image.load()
        end += image.info["duration"]
        frames.append((end, np.asarray(image.convert("RGB")).astype(float)))
    return frames


def test_a_motion_goes_from_the_prototype_to_the_aligned_prototype() -> None:
    model, beta = method(), {name: value[0] for name, value in parameters().items()}
    pictures = transform_gradually(model, 1, beta, torch.tensor([0.0, 0.5, 1.0]))
    start, half, end = (picture.astype(float) for picture in pictures)
    aligned = to_pictures(model.transform(torch.tensor([1]), {name: value[None] for name, value in beta.items()}))[0]
    assert np.array_equal(pictures[0], to_pictures(model.prototypes_KCHW())[1])
    assert np.array_equal(pictures[2], aligned)
    whole = abs(end - start).mean()
    assert whole > 5
    assert 0 < abs(half - start).mean() < whole
    assert 0 < abs(half - end).mean() < whole


def test_the_animation_shows_prototype_alignment_and_photo_and_returns() -> None:
    model, photos = method(), [np.full((SIDE, SIDE, 3), value, np.uint8) for value in (40, 200)]
    frames = timed(opened(draw_motion(model, 1, parameters(), list[Pixels](photos), 96)))
    before_photo = 2 * HOLD_MS + (STEPS - 1 + FADE) * STEP_MS
    each = before_photo + PHOTO_MS + (FADE + STEPS) * STEP_MS
    assert frames[-1][0] == 2 * each
    assert frames[0][1].shape == (96, 96, 3)

    def at(time_ms: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return next(pixels for end, pixels in frames if end > time_ms)

    prototype = to_pictures(model.prototypes_KCHW())[1].astype(float)
    for start, value in ((0, 40), (each, 200)):
        assert abs(at(start + 1)[1::3, 1::3] - prototype).mean() < 5
        assert abs(at(start + before_photo + PHOTO_MS / 2) - value).mean() < 4


def test_a_prototype_without_images_stands_still() -> None:
    image = opened(draw_motion(method(), 0, {}, [], 48))
    assert getattr(image, "n_frames", 1) == 1

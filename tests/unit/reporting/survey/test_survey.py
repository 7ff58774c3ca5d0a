from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.clustering.model.method import Assignment, StepOutput
from pipeline.config import ClusteringConfig
from pipeline.reporting.pictures.thumbnails import ThumbnailForm
from pipeline.reporting.survey import survey
from pipeline.reporting.survey.survey import Survey, survey_samples
from pipeline.reporting.tables.manifest import clusters_schema
from tests.support.made_collection import BLUE, GREEN, RED, WHITE, sample

SCHEMA = clusters_schema(ClusteringConfig(method="dti-kmeans", transforms=["color", "tps"]))
FORM = ThumbnailForm(16, 2000)
IMAGES = [("a", RED), ("b", BLUE), ("c", RED), ("d", GREEN)]
ASSIGNED = {"d": 1, "c": 0, "b": 1, "a": 0}


class Brighter:
    """Method with two prototypes, black and white; the first parameter of `color` is added to the pixels."""

    def loss(self, images_BCHW: Tensor) -> StepOutput:
        raise NotImplementedError

    def assign(self, images_BCHW: Tensor) -> Assignment:
        raise NotImplementedError

    def prototypes_KCHW(self) -> Tensor:
        return torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])

    def shares_K(self) -> Tensor:
        return torch.full((2,), 0.5)

    def transform(self, cluster_B: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        return self.prototypes_KCHW()[cluster_B] + parameters["color"][:, :1, None, None]

    def align_back(self, images_BCHW: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        return images_BCHW - parameters["color"][:, :1, None, None]


def rows() -> pa.Table:
    """Return the rows of the samples in another order; each image has another brightness parameter."""
    columns = [
        {"image_id": image_id, "cluster": cluster, "transform_color": [0.1 * i] + [0.0] * 5}
        for i, (image_id, cluster) in enumerate(ASSIGNED.items())
    ]
    return pa.Table.from_pylist(columns, SCHEMA)


def surveyed(to_draw: set[str]) -> Survey:
    result = Survey()
    for sums, thumbnails in survey_samples(Brighter(), [sample(*image) for image in IMAGES], rows(), to_draw, FORM):
        result += Survey(sums, {("c1", 0, image_id): three for image_id, three in thumbnails.items()})
    return result


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_image_counts_in_its_cluster_with_its_own_parameters(
    monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    monkeypatch.setattr(survey, "BATCH_SIZE", batch_size)
    sums = surveyed(set()).sums
    assert {cluster: part.images for cluster, part in sums.items()} == {0: 2, 1: 2}
    photos = {image_id: sample(image_id, color).pixels() / 255 for image_id, color in IMAGES}
    red = photos["a"]
    expected = ((red - 0.3) ** 2).sum() + ((red - 0.1) ** 2).sum()
    assert sums[0].residual == pytest.approx(expected, rel=1e-5)
    mean = (photos["b"] + photos["d"]) / 2
    assert np.allclose(sums[1].mean_CHW.permute(1, 2, 0).numpy(), mean, atol=1e-6)


def test_only_requested_thumbnails_are_drawn() -> None:
    thumbnails = surveyed({"b"}).thumbnails
    assert set(thumbnails) == {("c1", 0, "b")}
    three = thumbnails["c1", 0, "b"]
    colors = [
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).mean((0, 1))
        for data in (three.photo, three.prototype, three.aligned)
    ]
    back = (np.array(BLUE) - 0.2 * 255).clip(0)
    assert np.allclose(np.array(colors), np.array([BLUE, WHITE, back]), atol=6)


def test_a_cluster_without_images_has_empty_sums() -> None:
    assert Survey().sums_of(3, (3, 4, 4)).images == 0

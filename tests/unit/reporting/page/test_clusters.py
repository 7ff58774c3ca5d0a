from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import ReportingConfig
from pipeline.reporting.page.clusters import ClusterView, cluster_views, deviation_picture
from pipeline.reporting.survey.sums import ClusterSums
from tests.support.made_page import made_clusters, made_findings


def views(k: int = 3, images: int = 60, **options: bool) -> list[ClusterView]:
    clusters = made_clusters(k, images)
    findings = made_findings(clusters, k, ReportingConfig.model_validate(options))
    return cluster_views(findings)


def test_views_are_in_the_tiles_order_with_their_own_numbers() -> None:
    found = views()
    assert [view.tile.cluster for view in found] == [2, 1, 0]
    assert [len(view.groups["nearest"]) for view in found] == [8, 8, 8]
    assert all(view.quality.quality == view.tile.quality for view in found)
    assert found[2].hashtags == [("rome", found[2].tile.size), ("tag0", found[2].tile.size)]
    assert found[2].neighbours == [(1, found[2].tile.size)]
    assert found[2].dated == found[2].tile.size


def test_the_mean_loss_is_that_of_the_rows() -> None:
    clusters = made_clusters(1, 50)
    expected = np.mean(clusters["negative_log_likelihood"].to_numpy(), dtype=np.float64)
    assert views(1, 50)[0].mean_loss == f"{expected:,.0f}".replace("-", "−")


def test_an_empty_cluster_has_a_prototype_and_nothing_else() -> None:
    empty = next(view for view in views(k=5, images=4) if view.tile.size == 0)
    assert empty.prototype.startswith("data:image/webp;base64,")
    assert (empty.mean, empty.groups, empty.mean_loss, empty.losses, empty.hashtags) == (None, {}, None, "", [])


def test_without_examples_there_are_no_groups() -> None:
    assert [view.groups for view in views(examples=False)] == [{}, {}, {}]


def test_the_mean_image_is_the_mean_of_the_photos() -> None:
    clusters = made_clusters(1, 10)
    findings = made_findings(clusters, 1, ReportingConfig())
    mean = views(1, 10)[0].mean
    assert mean is not None
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(mean.split(",")[1]))).convert("RGB")).astype(float)
    expected = 255 * findings.sums[0].mean_CHW.permute(1, 2, 0).numpy()
    assert picture.mean() == pytest.approx(expected.mean(), abs=4)


def test_deviations_are_brighter_where_photos_differ_more() -> None:
    sums = ClusterSums.zeros((3, 1, 4))
    aligned = torch.tensor([0.0, 0.05, 0.25, 0.5]).expand(2, 3, 1, 4)
    sums.add(aligned, aligned, aligned, torch.zeros(3, 1, 4))
    assert deviation_picture(sums)[0, :, 0].tolist() == [0, 51, 255, 255]

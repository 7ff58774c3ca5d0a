from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.clustering.model.method import Assignment, StepOutput
from pipeline.config import ClusteringConfig
from pipeline.errors import StorageError
from pipeline.paths import CrawlPaths
from pipeline.reporting.assignment import shards
from pipeline.reporting.assignment.shards import assign_samples, assign_shard
from pipeline.reporting.tables.manifest import clusters_schema
from pipeline.storage import LocalStorage, read_table, write_table
from tests.support.made_collection import BLUE, GREEN, RED, make_crawl, sample, write_shard_at

SCHEMA = clusters_schema(ClusteringConfig(method="dti-kmeans", transforms=["color", "tps"]))
IMAGES = [("a", RED), ("b", BLUE), ("c", GREEN)]


class NearestColor:
    """Method that assigns to the nearest of three colours; its colour module has no effect, its TPS is never active."""

    colors_KC = torch.tensor([RED, GREEN, BLUE]) / 255

    def loss(self, images_BCHW: Tensor) -> StepOutput:
        raise NotImplementedError

    def assign(self, images_BCHW: Tensor) -> Assignment:
        distance_BK = torch.cdist(images_BCHW.mean((2, 3)), self.colors_KC).square()
        best = distance_BK.topk(2, largest=False)
        return Assignment(
            cluster_B=best.indices[:, 0],
            loss_B=best.values[:, 0],
            posterior_B=torch.ones(len(images_BCHW)),
            runner_up_B=best.indices[:, 1],
            margin_B=best.values[:, 1] - best.values[:, 0],
            parameters={"color": torch.arange(6.0).expand(len(images_BCHW), 6)},
        )

    def prototypes_KCHW(self) -> Tensor:
        return self.colors_KC[:, :, None, None].expand(-1, -1, 16, 16)

    def shares_K(self) -> Tensor:
        return torch.full((3,), 1 / 3)

    def transform(self, cluster_B: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        return self.prototypes_KCHW()[cluster_B]

    def align_back(self, images_BCHW: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        return images_BCHW


def test_every_sample_has_its_row_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BATCH_SIZE", 2)
    rows = assign_samples(NearestColor(), [sample(*image) for image in IMAGES], SCHEMA)
    assert rows["image_id"].to_pylist() == ["a", "b", "c"]
    assert rows["cluster"].to_pylist() == [0, 2, 1]


def test_parameters_become_one_list_per_image() -> None:
    rows = assign_samples(NearestColor(), [sample(*image) for image in IMAGES], SCHEMA)
    assert rows["transform_color"].to_pylist() == [[0, 1, 2, 3, 4, 5]] * 3


def test_a_module_that_was_never_activated_has_no_parameters() -> None:
    rows = assign_samples(NearestColor(), [sample(*image) for image in IMAGES], SCHEMA)
    assert rows["transform_tps"].to_pylist() == [None] * 3


def test_an_empty_shard_gives_no_rows() -> None:
    assert assign_samples(NearestColor(), [], SCHEMA).num_rows == 0


def test_a_shard_s_rows_contain_the_records_of_ingest(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    crawl = make_crawl(storage, "paris", "c1", [IMAGES[:1], IMAGES[1:]])
    table = assign_shard(storage, NearestColor(), crawl, 1, SCHEMA)
    assert table.schema.equals(SCHEMA, check_metadata=True)
    row = table.to_pylist()[1]
    assert (row["image_id"], row["source_uri"], row["caption"]) == ("c", "/photos/c.jpg", "café")
    assert (row["crawl_id"], row["shard"], row["cluster"]) == ("c1", 1, 1)


def test_rows_are_matched_with_images_by_id_and_not_by_position(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    crawl = make_crawl(storage, "paris", "c1", [IMAGES])
    key = CrawlPaths("paris", "c1").rows(0)
    write_table(storage, key, read_table(storage, key).take([3, 2, 1, 0]))
    table = assign_shard(storage, NearestColor(), crawl, 0, SCHEMA)
    assert table["source_uri"].to_pylist() == ["/photos/a.jpg", "/photos/b.jpg", "/photos/c.jpg"]


def test_a_tar_that_does_not_belong_to_its_rows_is_refused(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    crawl = make_crawl(storage, "paris", "c1", [IMAGES])
    write_shard_at(storage, CrawlPaths("paris", "c1").shard(0), [sample("stranger", RED)])
    with pytest.raises(StorageError, match=f"delete {tmp_path}/paris/crawls/c1 and run the same"):
        assign_shard(storage, NearestColor(), crawl, 0, SCHEMA)

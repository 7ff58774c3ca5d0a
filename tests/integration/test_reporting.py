"""Tests of the reporting stage on a local Ray cluster, with a model whose assignments are known."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from pipeline.clustering.trial import TrialResult
from pipeline.config import ClusteringConfig, JobConfig, ReportingConfig
from pipeline.errors import PipelineError, StorageError
from pipeline.paths import CrawlPaths, RunPaths
from pipeline.records import Crawl
from pipeline.reporting.assignment.shards import assign_crawls
from pipeline.reporting.run import Run
from pipeline.reporting.stage import report
from pipeline.reporting.tables.manifest import SOURCES
from pipeline.storage import LocalStorage, read_json, read_table, write_json
from tests.support.made_collection import BLUE, GREEN, RED, WHITE, make_crawl, make_trial, sample, write_shard_at

pytestmark = pytest.mark.usefixtures("ray_cluster")


@dataclass(frozen=True)
class Job:
    """A collection with two crawls and two trained trials, ready to be reported."""

    storage: LocalStorage
    config: JobConfig
    paths: RunPaths
    crawls: list[Crawl]
    results: list[TrialResult]

    def report(self, selected: int = 1, **changes: Any) -> dict[str, Any]:
        config = self.config.model_copy(update=changes)
        run_id = self.paths.run_id
        run = Run(run_id, config, self.crawls, self.results, self.results[selected], "elbow")
        return report(self.storage, run)


def make_job(workspace: Path, labels: Mapping[str, str] = MappingProxyType({})) -> Job:
    """Return a job with 8 images, one of them in both crawls; the larger trial has 4 plain prototypes, one unused."""
    storage, paths = LocalStorage(str(workspace)), RunPaths("paris", "run-1")
    config = JobConfig(
        collection="paris",
        workspace=str(workspace),
        stages=["report"],
        clustering=ClusteringConfig(k=[2, 4], transforms=["color", "projective"]),
        reporting=ReportingConfig(strip_images=2, tile_px=32),
    )
    crawls = [
        make_crawl(storage, "paris", "monday", [[("r1", RED), ("g1", GREEN)], [("r2", RED), ("r3", RED)]], labels),
        make_crawl(storage, "paris", "tuesday", [[("r1", RED), ("b1", BLUE), ("g2", GREEN), ("r4", RED)]]),
    ]
    results = [
        make_trial(storage, paths, config.clustering, [RED, BLUE]),
        make_trial(storage, paths, config.clustering, [GREEN, WHITE, RED, BLUE]),
    ]
    return Job(storage, config, paths, crawls, results)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, dict[str, Any]]:
    """A job and the document that reporting it returned."""
    job = make_job(tmp_path_factory.mktemp("workspace"))
    return job, job.report()


def written(job: Job) -> dict[str, int]:
    """Return the modification time of each file of the run, in ns."""
    folder = job.paths.folder
    return {key: Path(job.storage.uri(key)).stat().st_mtime_ns for key in job.storage.list(folder)}


def test_every_image_is_assigned_to_its_prototype(done: tuple[Job, dict[str, Any]]) -> None:
    job, _ = done
    clusters = read_table(job.storage, job.paths.clusters)
    found = sorted(zip(*(clusters[name].to_pylist() for name in ("crawl_id", "image_id", "cluster")), strict=True))
    assert found == [
        ("monday", "g1", 0), ("monday", "r1", 2), ("monday", "r2", 2), ("monday", "r3", 2),
        ("tuesday", "b1", 3), ("tuesday", "g2", 0), ("tuesday", "r1", 2), ("tuesday", "r4", 2),
    ]  # fmt: skip


def test_prototypes_keep_the_model_s_index(done: tuple[Job, dict[str, Any]]) -> None:
    job, _ = done
    prototypes = read_table(job.storage, job.paths.prototypes)
    assert prototypes["size"].to_pylist() == [2, 0, 5, 1]
    assert prototypes["nearest"].to_pylist()[1:] == [[], ["r1", "r2"], ["b1"]]


def test_parameters_are_those_of_the_identity(done: tuple[Job, dict[str, Any]]) -> None:
    job, _ = done
    clusters = read_table(job.storage, job.paths.clusters)
    # Colours are fitted, and JPEG changes a flat colour by a level or two.
    assert np.abs(np.array(clusters["transform_color"].to_pylist())).max() < 0.01
    assert clusters["transform_projective"].to_pylist() == [[0.0] * 8] * 8


def test_every_cluster_has_its_picture(done: tuple[Job, dict[str, Any]]) -> None:
    job, document = done
    assert document["paths"]["strips"] == [job.storage.uri(job.paths.strip(cluster)) for cluster in range(4)]
    for path in [document["paths"]["mosaic"], *document["paths"]["strips"]]:
        Image.open(path, formats=["PNG"]).load()


def test_a_strip_shows_the_photos_of_its_cluster(done: tuple[Job, dict[str, Any]]) -> None:
    _, document = done
    drawn = np.asarray(Image.open(document["paths"]["strips"][3])).astype(int)
    nearly_blue = int((abs(drawn - BLUE) < 4).all(-1).sum())
    assert nearly_blue == (4 + 3) * 32 * 32  # the large prototype, and one photo in three versions


def test_every_cluster_has_its_animation(done: tuple[Job, dict[str, Any]]) -> None:
    job, document = done
    assert document["paths"]["animations"] == [job.storage.uri(job.paths.motion(cluster)) for cluster in range(4)]
    for cluster, color in enumerate((GREEN, WHITE, RED, BLUE)):
        shown = Image.open(job.storage.uri(job.paths.motion(cluster)), formats=["WEBP"])
        assert shown.size == (32, 32)
        assert np.allclose(np.asarray(shown.convert("RGB")).mean((0, 1)), color, atol=4)


def test_the_animation_of_training_ends_with_the_prototypes_in_the_mosaic_s_order(
    done: tuple[Job, dict[str, Any]],
) -> None:
    job, document = done
    assert document["paths"]["training"] == job.storage.uri(job.paths.timelapse)
    data = job.storage.read_bytes(job.paths.timelapse)
    pixels = np.asarray(Image.open(io.BytesIO(data), formats=["WEBP"]).convert("RGB")).astype(int)
    shown = [color for color in (GREEN, WHITE, RED, BLUE) if (abs(pixels - color) < 12).all(-1).sum() > 400]
    assert shown == [GREEN, WHITE, RED, BLUE]
    # A model without snapshots of its training has a single frame, so the page shows no animation.
    assert "Watch the prototypes form" not in job.storage.read_bytes(job.paths.page).decode()
    (uploaded,) = Path(job.storage.uri("mlartifacts")).rglob("training.webp")
    assert uploaded.read_bytes() == data


def test_run_json_describes_the_report(done: tuple[Job, dict[str, Any]]) -> None:
    job, document = done
    assert document == read_json(job.storage, job.paths.marker)
    counts = {"records": 11, "images": 8, "assigned": 8, "cluster_sizes": [2, 0, 5, 1]}
    assert document["counts"] == {**counts, "clear_clusters": 0, "clear_images": 0}
    assert document["selected"] == {"k": 4, "seed": 0, "loss": job.results[1].loss, "reason": "elbow"}
    assert [trial["k"] for trial in document["trials"]] == [2, 4]
    assert document["tracking"]["error"] is None
    assert document["tracking"]["model"] == "models:/paris/1"
    assert document["reporting"] == job.config.reporting.model_dump()
    assert document["metrics"] is None
    assert [trial["metrics"] for trial in document["trials"]] == [None, None]


def test_labelled_images_give_every_trial_its_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, {"r1": "warm", "g1": "cold", "r2": "warm", "r3": "cold"})
    assigned: list[str] = []

    def counted(storage: LocalStorage, checkpoint: str, *rest: Any) -> Any:
        assigned.append(checkpoint)
        return assign_crawls(storage, checkpoint, *rest)

    monkeypatch.setattr("pipeline.reporting.stage.assign_crawls", counted)
    document = job.report()
    # K = 4: green contains one class, red contains both, two to one. K = 2: all images are red, matched to one class.
    expected = {"accuracy": 0.75, "labelled_images": 4, "classes": 2}
    assert document["metrics"] == {**expected, "nmi": pytest.approx(0.344, abs=1e-3)}
    assert document["trials"][1]["metrics"] == document["metrics"]
    assert document["trials"][0]["metrics"]["accuracy"] in {0.5, 0.75}
    assert sorted(assigned) == [job.paths.checkpoint("k=2-seed=0"), job.paths.checkpoint("k=4-seed=0")]
    labels = read_table(job.storage, job.paths.clusters)
    assert dict(zip(labels["image_id"].to_pylist(), labels["label"].to_pylist(), strict=True))["g1"] == "cold"
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    tracked = client.search_runs([client.get_experiment_by_name("paris").experiment_id])
    found = {run.info.run_name: run.data.metrics["accuracy"] for run in tracked}
    assert found["run-1"] == found["k=4-seed=0"] == 0.75
    assert found["k=2-seed=0"] == document["trials"][0]["metrics"]["accuracy"]


def test_every_path_in_run_json_exists(done: tuple[Job, dict[str, Any]]) -> None:
    _, document = done
    paths = [path for name, path in document["paths"].items() if name not in ("strips", "animations", "config")]
    assert [path for path in paths if not Path(path).exists()] == []


def test_run_json_contains_the_duration_of_each_part(done: tuple[Job, dict[str, Any]]) -> None:
    _, document = done
    assert set(document["seconds"]) == {"assign", "survey", "page", "tables", "pictures"}
    assert all(seconds > 0 for seconds in document["seconds"].values())


def test_the_tracked_run_contains_the_final_run_json(done: tuple[Job, dict[str, Any]]) -> None:
    job, document = done
    (uploaded,) = Path(job.storage.uri("mlartifacts")).rglob("run.json")
    assert json.loads(uploaded.read_text()) == document


def test_the_same_report_again_does_nothing(
    done: tuple[Job, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    job, document = done
    before = written(job)
    capsys.readouterr()
    assert job.report() == document
    assert written(job) == before
    assert "done already" in capsys.readouterr().out


def test_another_selection_replaces_the_whole_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(tmp_path)
    job.report()
    capsys.readouterr()
    document = job.report(selected=0)
    counted = {"assign": "8 images", "survey": "8 images", "page": "2 clusters", "draw": "2 clusters"}
    console = capsys.readouterr().out
    for part, what in counted.items():
        assert re.search(rf"^{part} +{what} in [\d.]+ s, [\d.,]+ {what[2:]}/s$", console, re.MULTILINE), console
    assert document["selected"]["k"] == 2
    pictures = {key for key in job.storage.list(job.paths.folder) if "/clusters/" in key}
    assert pictures == {picture(cluster) for cluster in (0, 1) for picture in (job.paths.strip, job.paths.motion)}


def test_reporting_a_run_again_keeps_the_time_of_its_first_report(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    document = job.report()
    assert document["created_at"] == document["reported_at"]
    write_json(job.storage, job.paths.marker, {**document, "created_at": "2024-05-01T00:00:00+00:00"})
    again = job.report(reporting=ReportingConfig(strip_images=1, examples=False))
    assert again["created_at"] == "2024-05-01T00:00:00+00:00"
    assert again["reported_at"] >= document["reported_at"]
    assert again["reported_at"] in job.storage.read_bytes(job.paths.page).decode()
    assert read_json(job.storage, job.paths.marker) == again


def test_a_failing_report_leaves_the_earlier_one_unchanged(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    job.report()
    job.storage.delete(job.paths.checkpoint("k=2-seed=0"))
    before = written(job)
    remedy = f"checkpoint.pt is missing; delete {tmp_path}/paris/runs/run-1/trials/k=2-seed=0 and run"
    with pytest.raises(StorageError, match=remedy):
        job.report(selected=0)
    write_shard_at(job.storage, CrawlPaths("paris", "tuesday").shard(0), [sample("r1", RED)])
    with pytest.raises(PipelineError, match="1 images were assigned"):
        job.report(reporting=ReportingConfig(strip_images=1))
    assert written(job) == before


def test_a_report_with_missing_files_is_made_again(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    job.report()
    for lost in (
        job.paths.mosaic,
        job.paths.timelapse,
        job.paths.strip(3),
        job.paths.clusters,
        job.paths.page,
        job.paths.spreadsheet,
    ):
        job.storage.delete(lost)
    document = job.report(tracking_uri=f"sqlite:///{tmp_path}/other.db")
    assert document["tracking"]["error"] is None
    assert all(Path(path).is_file() for path in (document["paths"]["mosaic"], *document["paths"]["strips"]))
    assert all(job.storage.exists(key) for key in (job.paths.clusters, job.paths.page, job.paths.spreadsheet))


def test_only_tracking_is_repeated_after_the_server_was_down(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert job.report(tracking_uri=down)["tracking"]["error"]
    before = written(job)
    document = job.report()
    after = written(job)
    assert document["tracking"]["error"] is None
    assert document == read_json(job.storage, job.paths.marker)
    assert {key for key in after if after[key] != before[key]} == {job.paths.marker, job.paths.tracked}


def test_a_report_without_examples_has_no_photo_caption_or_link(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    job.report()
    assert "café" in job.storage.read_bytes(job.paths.page).decode()
    document = job.report(reporting=job.config.reporting.model_copy(update={"examples": False}))
    assert document["paths"]["strips"] == []
    assert [key for key in job.storage.list(job.paths.folder) if "/clusters/" in key] == []
    for key in (job.paths.page, job.paths.spreadsheet):
        text = job.storage.read_bytes(key).decode()
        assert "café" not in text
        assert "/photos/" not in text
    clusters = read_table(job.storage, job.paths.clusters)
    assert all(clusters[name].null_count == clusters.num_rows for name in SOURCES)
    assert sorted(clusters["image_id"].to_pylist()) == ["b1", "g1", "g2", "r1", "r1", "r2", "r3", "r4"]
    assert read_table(job.storage, job.paths.prototypes)["nearest"].to_pylist() == [[]] * 4
    before = written(job)
    assert job.report(reporting=job.config.reporting.model_copy(update={"examples": False})) == document
    assert written(job) == before


def test_the_page_shows_the_photos_of_every_cluster(done: tuple[Job, dict[str, Any]]) -> None:
    job, document = done
    page = job.storage.read_bytes(job.paths.page).decode()
    assert document["paths"]["page"] == job.storage.uri(job.paths.page)
    pictures = re.findall(r'class="photo crisp" src="data:image/webp;base64,([^"]+)"', page)
    colors = {
        tuple(
            np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).mean((0, 1)).round(-1).astype(int)
        )
        for data in pictures
    }
    assert colors == {(220, 30, 30), (30, 200, 40), (30, 40, 210)}
    (uploaded,) = Path(job.storage.uri("mlartifacts")).rglob("report.html")
    assert uploaded.read_text() == page


def test_images_missing_from_a_shard_fail_the_report(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    write_shard_at(job.storage, CrawlPaths("paris", "tuesday").shard(0), [sample("r1", RED)])
    with pytest.raises(PipelineError, match="tuesday: 1 images were assigned, 4 were ingested"):
        job.report()
    assert not job.storage.exists(job.paths.marker)

"""Tests of the assignment of later crawls on a local Ray cluster, with a model whose assignments are known."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from pipeline.config import ClusteringConfig, IngestConfig, JobConfig, ReportingConfig, dump_config
from pipeline.errors import ConfigError, PipelineError, StorageError
from pipeline.orchestration.new_crawls import assign_collection
from pipeline.paths import CrawlPaths, RunPaths
from pipeline.records import Crawl
from pipeline.reporting.assignment import new_crawl
from pipeline.reporting.run import Run
from pipeline.reporting.stage import report
from pipeline.reporting.tables.cluster_files import write_clusters_csv
from pipeline.reporting.tables.manifest import SOURCES
from pipeline.storage import LocalStorage, read_json, read_table, write_json
from tests.support.crawl_files import encoded
from tests.support.made_collection import BLUE, GREEN, RED, Color, make_crawl, make_trial, plain

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROOT = Path(__file__).parents[2]
DARK_RED = (170, 20, 20)
"""A colour whose nearest prototype is red, but which no prototype explains."""


def write_crawl(storage: LocalStorage, crawl_id: str, shards: Sequence[Sequence[tuple[str, Color]]]) -> Crawl:
    """Write a complete crawl that keeps duplicates, as plain pictures would all count as near-duplicates."""
    crawl = replace(make_crawl(storage, "paris", crawl_id, shards), keep_duplicates=True)
    write_json(storage, CrawlPaths("paris", crawl_id).marker, asdict(crawl))
    return crawl


def write_run(workspace: Path) -> LocalStorage:
    """Report a run with three prototypes on the crawl monday, which has two red images, a green and a blue one."""
    storage, paths = LocalStorage(str(workspace)), RunPaths("paris", "run-1")
    config = JobConfig(
        collection="paris",
        workspace=str(workspace),
        stages=["report"],
        ingest=IngestConfig(image_size=16, keep_duplicates=True),
        clustering=ClusteringConfig(k=[3], transforms=["color", "projective"]),
        reporting=ReportingConfig(strip_images=1, motion_images=0, tile_px=32),
    )
    monday = write_crawl(storage, "monday", [[("r1", RED), ("g1", GREEN)], [("r2", RED), ("b1", BLUE)]])
    result = make_trial(storage, paths, config.clustering, [RED, GREEN, BLUE])
    write_json(storage, paths.trial_marker(result.trial.name), result.to_json())
    storage.write_bytes(paths.config, dump_config(config).encode())
    report(storage, Run(paths.run_id, config, [monday], [result], result, "the only K"))
    return storage


def write_tuesday(storage: LocalStorage) -> Crawl:
    """Write the crawl tuesday with five images: a red one, a dark red one and three blue ones."""
    return write_crawl(
        storage, "tuesday", [[("r3", RED), ("b2", BLUE)], [("d1", DARK_RED), ("b3", BLUE), ("b4", BLUE)]]
    )


def assign(
    storage: LocalStorage, *crawl_ids: str, run: str = "latest", collection: str = "paris", **changes: Any
) -> list[str]:
    config = JobConfig(collection=collection, workspace=storage.root, stages=["cluster"], **changes)
    return assign_collection(storage, config, run, crawl_ids)


def files(storage: LocalStorage) -> dict[str, int]:
    """Return the modification time of each file of all assignments, in ns."""
    keys = storage.list("paris/runs/run-1/assignments")
    return {key: Path(storage.uri(key)).stat().st_mtime_ns for key in keys}


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace with the run, which tests copy."""
    return Path(write_run(tmp_path_factory.mktemp("reported")).root)


@pytest.fixture
def storage(reported: Path, tmp_path: Path) -> LocalStorage:
    """A copy of the workspace with the run, for one test."""
    return LocalStorage(str(shutil.copytree(reported, tmp_path / "workspace")))


@pytest.fixture(scope="module")
def assigned(reported: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalStorage:
    """A workspace in which the crawl tuesday is assigned to the prototypes of the run."""
    storage = LocalStorage(str(shutil.copytree(reported, tmp_path_factory.mktemp("assigned") / "workspace")))
    write_tuesday(storage)
    assert assign(storage) == [f"assigned  {storage.uri('paris/runs/run-1/assignments/tuesday')}"]
    return storage


PATHS = RunPaths("paris", "run-1").assignment("tuesday")


def test_a_later_crawl_is_assigned_to_the_prototypes_of_the_run(assigned: LocalStorage) -> None:
    clusters = read_table(assigned, PATHS.clusters)
    found = dict(zip(clusters["image_id"].to_pylist(), clusters["cluster"].to_pylist(), strict=True))
    assert found == {"r3": 0, "d1": 0, "b2": 2, "b3": 2, "b4": 2}
    own = read_table(assigned, RunPaths("paris", "run-1").clusters)
    assert clusters.schema.equals(own.schema, check_metadata=True)
    assert len(assigned.read_bytes(PATHS.spreadsheet).splitlines()) == 6


def test_shares_are_compared_with_those_of_the_run(assigned: LocalStorage) -> None:
    rows = list(csv.DictReader(io.StringIO(assigned.read_bytes(PATHS.changes).decode())))
    numbers = [[float(row[name]) for name in ("size", "share", "run_size", "run_share")] for row in rows]
    assert numbers == [[2, 0.4, 2, 0.5], [0, 0, 1, 0.25], [3, 0.6, 1, 0.25]]
    assert [float(row["share_change"]) for row in rows] == pytest.approx([-0.1, -0.25, 0.35])
    here, there = ([row[f"{of}mean_negative_log_likelihood"] for row in rows] for of in ("", "run_"))
    assert here[1] == ""
    assert float(here[0]) > float(there[0])
    assert float(here[2]) == pytest.approx(float(there[2]))


def test_the_document_counts_unexplained_images(assigned: LocalStorage) -> None:
    document = read_json(assigned, PATHS.marker)
    assert document["counts"] == {"records": 7, "images": 5, "cluster_sizes": [2, 0, 3], "unexplained": 1}
    assert [row["cluster"] for row in document["changes"]["rise"]] == [2]
    assert [row["cluster"] for row in document["changes"]["fall"]] == [1, 0]
    assert document["images_per_second"] > 0
    assert [path for path in document["paths"].values() if not Path(path).exists()] == []
    with Image.open(document["paths"]["picture"]) as picture:
        assert picture.format == "PNG"


def test_the_same_command_again_changes_nothing_and_prints_the_changes(
    assigned: LocalStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(assigned)
    capsys.readouterr()
    assign(assigned, run="run-1")
    assert files(assigned) == before
    console = capsys.readouterr().out
    assert "assignments/tuesday is done already" in console
    assert "more often: #2 25.0% to 60.0%" in console
    assert "less often: #1 25.0% to 0.0%, #0 50.0% to 40.0%" in console
    assert "1 of 5 images (20.0%) has a higher loss than 99% of the run's images" in console


def test_a_crawl_of_the_run_is_assigned_as_in_the_run(assigned: LocalStorage) -> None:
    assign(assigned, "monday", run="run-1")
    again = read_table(assigned, RunPaths("paris", "run-1").assignment("monday").clusters)
    assert again.equals(read_table(assigned, RunPaths("paris", "run-1").clusters))


def test_without_examples_the_tables_contain_no_source(assigned: LocalStorage) -> None:
    reporting = ReportingConfig(examples=False)
    assign(assigned, "tuesday", reporting=reporting)
    clusters = read_table(assigned, PATHS.clusters)
    assert all(clusters[name].null_count == clusters.num_rows for name in SOURCES)
    assert "/photos/" not in assigned.read_bytes(PATHS.spreadsheet).decode()
    assign(assigned, "tuesday")
    assert read_table(assigned, PATHS.clusters)["caption"].to_pylist() == ["café"] * 5


def test_an_interrupted_job_continues_with_what_is_missing(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tuesday(storage)
    write_crawl(storage, "wednesday", [[("g9", GREEN)]])

    def interrupted(where: LocalStorage, key: str, clusters: pa.Table) -> None:
        if "wednesday" in key:
            raise KeyboardInterrupt
        write_clusters_csv(where, key, clusters)

    with monkeypatch.context() as patched:
        patched.setattr(new_crawl, "write_clusters_csv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            assign(storage)
    before = files(storage)
    wednesday = RunPaths("paris", "run-1").assignment("wednesday")
    assert wednesday.clusters in before
    assert wednesday.marker not in before
    assert len(assign(storage)) == 2
    after = files(storage)
    assert wednesday.marker in after
    assert {key for key in before if after[key] != before[key]} == {wednesday.clusters}


def test_an_assignment_with_a_missing_file_is_made_again(storage: LocalStorage) -> None:
    write_tuesday(storage)
    assign(storage)
    storage.delete(PATHS.picture)
    assign(storage)
    assert storage.exists(PATHS.picture)


def test_a_run_without_later_crawls_has_nothing_to_do(
    storage: LocalStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert assign(storage) == []
    assert "nothing to do: run run-1 has learned from all complete crawls" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"run": "run-2"}, "run 'run-2': no report of that name"),
        ({"collection": "rome"}, "collection 'rome': no report in"),
        (
            {"ingest": IngestConfig(image_size=64)},
            "ingest.image_size: the images of run run-1 were ingested with 16, not 64",
        ),
        ({"source": "/photos", "crawl_ids": ["tuesday"]}, "not both"),
        ({"crawl_ids": ["friday"]}, "crawl 'friday': no complete crawl with this id"),
        (
            {"crawl_ids": ["large"]},
            "crawl large: its images are 32 px, rgb, JPEG, without duplicates, but those of run run-1",
        ),
    ],
)
def test_invalid_requests_are_refused(assigned: LocalStorage, asked: dict[str, Any], message: str) -> None:
    crawl = Crawl("paris", "large", 1, 1, 1, {}, 32, "digest-large")
    write_json(assigned, CrawlPaths("paris", "large").marker, asdict(crawl))
    before = files(assigned)
    with pytest.raises(ConfigError, match=message):
        assign(assigned, *asked.pop("crawl_ids", ()), **asked)
    assert files(assigned) == before


def test_a_missing_model_is_reported_before_any_work(storage: LocalStorage) -> None:
    write_tuesday(storage)
    storage.delete(RunPaths("paris", "run-1").checkpoint("k=3-seed=0"))
    with pytest.raises(StorageError, match=r"checkpoint.pt is missing; run the job that trained it"):
        assign(storage)


def test_missing_images_leave_no_assignment(storage: LocalStorage) -> None:
    crawl = write_tuesday(storage)
    write_json(storage, CrawlPaths("paris", "tuesday").marker, asdict(replace(crawl, accepted=6)))
    with pytest.raises(PipelineError, match="tuesday: 5 images were assigned, 6 were ingested"):
        assign(storage)
    assert files(storage) == {}


def run_job(*arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "jobs/assign_collection.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_one_command_ingests_a_source_and_assigns_it(storage: LocalStorage, tmp_path: Path) -> None:
    source = tmp_path / "november"
    source.mkdir()
    for index, color in enumerate([GREEN] * 6 + [BLUE] * 2):
        (source / f"{index}.jpg").write_bytes(encoded(Image.fromarray(plain(color, 24 + index))))
    (source / "broken.jpg").write_bytes(b"<html>")
    arguments = ["--collection=paris", f"--source={source}", f"--workspace={storage.root}"]
    job = run_job(*arguments)
    assert (job.returncode, job.stderr) == (0, ""), job.stderr
    (marker,) = (Path(storage.root) / "paris/runs/run-1/assignments").glob("*/assignment.json")
    document = json.loads(marker.read_text())
    assert document["counts"]["cluster_sizes"] == [0, 6, 2]
    assert document["counts"]["records"] == 9
    assert "9 records: 8 accepted, 1 rejected (1 not_an_image)" in job.stdout
    assert "more often: #1 25.0% to 75.0%" in job.stdout
    assert job.stdout.splitlines()[-1] == f"assigned  {marker.parent}"
    before = {path: path.stat().st_mtime_ns for path in Path(storage.root).rglob("*") if path.is_file()}
    again = run_job(*arguments)
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    refused = run_job(*arguments, "--run=run-2")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)

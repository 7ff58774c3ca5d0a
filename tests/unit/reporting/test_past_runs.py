from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ClusteringConfig, JobConfig, ReportingConfig, dump_config
from pipeline.errors import ConfigError, StorageError
from pipeline.layout import CrawlPaths, RunPaths
from pipeline.records import Crawl
from pipeline.reporting.past_runs import latest_run, past_run, past_runs
from pipeline.storage import LocalStorage, write_json
from tests.made_collection import trial_result

CRAWL = Crawl("rome", "monday", 1, 7, 6, {"truncated": 1}, 16, "digest")
REPORTING = ReportingConfig(examples=False)


def leave_a_report(folder: Path, run_id: str, created_at: str, uri: str | None = None) -> LocalStorage:
    """What `past_run` reads of the run `run_id` with trials of K = 2 and 4, in a workspace."""
    storage, paths = LocalStorage(str(folder)), RunPaths("rome", run_id)
    config = JobConfig(
        collection="rome", source="/photos", workspace=str(folder), clustering=ClusteringConfig(k=[2], select_k=2)
    )
    storage.write_bytes(paths.config, dump_config(config).encode())
    write_json(storage, CrawlPaths("rome", "monday").marker, asdict(CRAWL))
    results = [trial_result(2), trial_result(4)]
    for result in results:
        write_json(storage, paths.trial_marker(result.trial.name), result.to_json())
    document: dict[str, Any] = {
        "created_at": created_at,
        "crawls": [{"crawl_id": "monday", "digest": "as it was", "images": 6}],
        "trials": [{"k": result.k, "seed": result.seed} for result in results],
        "selected": {"k": 4, "seed": 0, "reason": "elbow of the loss"},
        "reporting": REPORTING.model_dump(mode="json"),
        "tracking": {"uri": uri or f"sqlite:///{storage.uri('mlflow.db')}"},
    }
    write_json(storage, paths.marker, document)
    return storage


def test_a_report_can_be_made_again_from_what_is_there(tmp_path: Path) -> None:
    found = past_run(leave_a_report(tmp_path, "run-1", "2026"), "rome", "run-1")
    assert (found.crawls, found.selected, found.reason) == ([CRAWL], trial_result(4), "elbow of the loss")
    assert found.results == [trial_result(2), trial_result(4)]
    assert found.config.reporting == REPORTING
    assert found.config.clustering.k == [2, 4]
    assert found.config.tracking_uri is None


@pytest.mark.parametrize(("asked", "expected"), [(None, "http://host"), ("http://me:it@host", "http://me:it@host")])
def test_it_is_tracked_where_it_was_or_where_the_user_says(tmp_path: Path, asked: str | None, expected: str) -> None:
    storage = leave_a_report(tmp_path, "run-1", "2026", "http://host")
    assert past_run(storage, "rome", "run-1", asked).config.tracking_uri == expected


def test_all_runs_come_in_the_order_in_which_they_were_reported(tmp_path: Path) -> None:
    for run_id, created_at in (("b", "2026-01"), ("c", "2026-03"), ("a", "2026-02")):
        storage = leave_a_report(tmp_path, run_id, created_at)
    assert [run.run_id for run in past_runs(storage, "rome")] == ["b", "a", "c"]
    assert latest_run(storage, "rome").run_id == "c"


def test_a_collection_without_a_report_has_no_latest_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"collection 'oslo': no report in {tmp_path}/oslo/runs; cluster it first"):
        latest_run(leave_a_report(tmp_path, "run-1", "2026"), "oslo")


def test_a_run_that_was_never_reported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run-2"):
        past_run(LocalStorage(str(tmp_path)), "rome", "run-2")


def test_a_report_whose_crawl_is_gone_says_so(tmp_path: Path) -> None:
    storage = leave_a_report(tmp_path, "run-1", "2026")
    storage.delete(CrawlPaths("rome", "monday").marker)
    with pytest.raises(StorageError, match="monday"):
        past_run(storage, "rome", "run-1")

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import ReportingConfig
from pipeline.errors import ConfigError, StorageError
from pipeline.paths import CrawlPaths
from pipeline.reporting.reported_runs import latest_run, load_run, reported_run_ids
from pipeline.storage import LocalStorage
from tests.support.made_collection import trial_result
from tests.support.made_report import WINDOWS, make_crawl_marker, make_report


def test_a_reported_run_is_loaded_from_storage(tmp_path: Path) -> None:
    storage, reporting = LocalStorage(str(tmp_path)), ReportingConfig(examples=False)
    make_report(storage, "rome", reporting=reporting)
    found = load_run(storage, "rome", "run-1")
    kept = trial_result(4, WINDOWS)
    assert (found.crawls, found.selected, found.reason) == (
        [make_crawl_marker(storage, "rome")],
        kept,
        "elbow of the loss",
    )
    assert found.results == [trial_result(2), kept]
    assert found.config.reporting == reporting
    assert found.config.clustering.k == [2, 4]
    assert found.config.tracking_uri is None


@pytest.mark.parametrize(("given", "expected"), [(None, "http://host"), ("http://me:it@host", "http://me:it@host")])
def test_it_is_tracked_where_it_was_or_where_the_user_says(tmp_path: Path, given: str | None, expected: str) -> None:
    storage = LocalStorage(str(tmp_path))
    make_report(storage, "rome", tracked="http://host")
    assert load_run(storage, "rome", "run-1", given).config.tracking_uri == expected


def test_all_runs_come_in_the_order_in_which_they_were_reported(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    for run_id, created_at in (("b", "2026-01"), ("c", "2026-03"), ("a", "2026-02")):
        make_report(storage, "rome", run_id, created_at)
    assert reported_run_ids(storage, "rome") == ["b", "a", "c"]
    assert latest_run(storage, "rome").run_id == "c"


def test_a_collection_without_a_report_has_no_latest_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"collection 'oslo': no report in {tmp_path}/oslo/runs; cluster it first"):
        latest_run(LocalStorage(str(tmp_path)), "oslo")


def test_a_run_that_was_never_reported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run-2"):
        load_run(LocalStorage(str(tmp_path)), "rome", "run-2")


def test_a_missing_crawl_is_an_error(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    make_report(storage, "rome")
    storage.delete(CrawlPaths("rome", "monday").marker)
    with pytest.raises(StorageError, match="monday"):
        load_run(storage, "rome", "run-1")

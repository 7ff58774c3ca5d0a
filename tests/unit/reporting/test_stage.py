from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.reporting.stage import closing_lines, found_sentence

PATHS = {"run": "/w/rome/runs/run-1", "page": "/w/rome/runs/run-1/report.html"}


def counts(clear_clusters: int = 8, clear_images: int = 272) -> dict[str, Any]:
    sizes = [40] * 9 + [14]
    return {
        "assigned": sum(sizes),
        "cluster_sizes": sizes,
        "clear_clusters": clear_clusters,
        "clear_images": clear_images,
    }


def lines(
    uri: str, error: str | None = None, metrics: dict[str, float] | None = None, symptoms: Sequence[str] = ()
) -> list[str]:
    tracking = {"uri": uri, "run_id": "1a2b", "error": error}
    document: dict[str, Any] = {"paths": PATHS, "tracking": tracking, "metrics": metrics, "counts": counts()}
    health = [{"name": name, "text": f"text of {name}", "clusters": []} for name in symptoms]
    return closing_lines(document | {"health": health})


def test_the_closing_lines_state_the_result_and_the_locations() -> None:
    assert lines("http://mlflow:5000") == [
        "found     8 of 10 clusters are clear views (quality 0.5 or more) and hold 73% of 374 images",
        "run       /w/rome/runs/run-1",
        "page      /w/rome/runs/run-1/report.html",
        "MLflow    http://mlflow:5000",
    ]


def test_the_closing_lines_begin_with_what_may_be_wrong() -> None:
    text = lines("http://mlflow:5000", symptoms=["no-clear-view", "cut-short", "alike"])
    assert text[:2] == ["check     text of cut-short", "check     text of alike"]  # the first one is said by "found"
    assert text[2].startswith("found ")


@pytest.mark.parametrize(
    ("clear_clusters", "clear_images", "expected"),
    [
        (
            0,
            0,
            "none of 10 clusters of 374 images is a clear view (quality 0.5 or more); the page shows all of them",
        ),
        (1, 40, "1 of 10 clusters is a clear view (quality 0.5 or more) and holds 11% of 374 images"),
        (10, 374, "10 of 10 clusters are clear views (quality 0.5 or more) and hold 100% of 374 images"),
    ],
)
def test_the_result_is_summarised_in_one_sentence(clear_clusters: int, clear_images: int, expected: str) -> None:
    assert found_sentence(counts(clear_clusters, clear_images)) == expected


def test_a_labelled_collection_has_a_line_with_metrics() -> None:
    metrics = {"accuracy": 0.97649, "nmi": 0.94, "labelled_images": 10_000, "classes": 10}
    second = lines("http://mlflow:5000", metrics=metrics)[1]
    assert second == "metrics   accuracy 0.976, NMI 0.940 on 10,000 labelled images"


def test_a_database_comes_with_the_command_that_shows_it() -> None:
    assert (
        lines("sqlite:////my w/mlflow.db")[-1] == "MLflow    mlflow ui --backend-store-uri 'sqlite:////my w/mlflow.db'"
    )


def test_a_run_that_is_not_completely_recorded_is_reported_as_such() -> None:
    assert "not everything is recorded in http://mlflow:5000" in lines("http://mlflow:5000", "refused")[-1]

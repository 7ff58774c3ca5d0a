from __future__ import annotations

from typing import Any

from pipeline.reporting.stage import closing_lines

PATHS = {"run": "/w/rome/runs/run-1", "page": "/w/rome/runs/run-1/report.html"}


def lines(uri: str, error: str | None = None, metrics: dict[str, float] | None = None) -> list[str]:
    tracking = {"uri": uri, "run_id": "1a2b", "error": error}
    document: dict[str, Any] = {"paths": PATHS, "tracking": tracking, "metrics": metrics}
    return closing_lines(document)


def test_the_last_lines_say_where_everything_is() -> None:
    assert lines("http://mlflow:5000") == [
        "run       /w/rome/runs/run-1",
        "page      /w/rome/runs/run-1/report.html",
        "MLflow    http://mlflow:5000",
    ]


def test_the_metrics_of_a_labelled_collection_come_first() -> None:
    metrics = {"accuracy": 0.97649, "nmi": 0.94, "labelled_images": 10_000, "classes": 10}
    first = lines("http://mlflow:5000", metrics=metrics)[0]
    assert first == "metrics   accuracy 0.976, NMI 0.940 on 10,000 labelled images"


def test_a_database_comes_with_the_command_that_shows_it() -> None:
    assert (
        lines("sqlite:////my w/mlflow.db")[-1] == "MLflow    mlflow ui --backend-store-uri 'sqlite:////my w/mlflow.db'"
    )


def test_a_run_that_is_not_all_recorded_is_not_called_so() -> None:
    assert "not all is in http://mlflow:5000" in lines("http://mlflow:5000", "refused")[-1]

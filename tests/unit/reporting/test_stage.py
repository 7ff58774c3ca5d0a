from __future__ import annotations

from typing import Any

from pipeline.reporting.stage import closing_lines

PATHS = {"run": "/w/rome/runs/run-1", "mosaic": "/w/rome/runs/run-1/mosaic.png"}


def lines(uri: str, error: str | None = None) -> list[str]:
    document: dict[str, Any] = {"paths": PATHS, "tracking": {"uri": uri, "run_id": "1a2b", "error": error}}
    return closing_lines(document)


def test_the_last_lines_say_where_everything_is() -> None:
    assert lines("http://mlflow:5000") == [
        "run       /w/rome/runs/run-1",
        "mosaic    /w/rome/runs/run-1/mosaic.png",
        "MLflow    http://mlflow:5000",
    ]


def test_a_database_comes_with_the_command_that_shows_it() -> None:
    assert (
        lines("sqlite:////my w/mlflow.db")[-1] == "MLflow    mlflow ui --backend-store-uri 'sqlite:////my w/mlflow.db'"
    )


def test_a_run_that_is_not_all_recorded_is_not_called_so() -> None:
    assert "not all is in http://mlflow:5000" in lines("http://mlflow:5000", "refused")[-1]

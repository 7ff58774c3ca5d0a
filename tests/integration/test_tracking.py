"""Tests of what a run records in MLflow, with real databases."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.masking import mask
from pipeline.paths import RunPaths
from pipeline.reporting.report_files import report_files
from pipeline.reporting.reported_runs import load_run
from pipeline.reporting.tracking import server
from pipeline.reporting.tracking.runs import Tracking, untrack
from pipeline.reporting.tracking.track import record_run
from pipeline.storage import LocalStorage, S3Storage
from tests.support.made_collection import BLUE, GREEN, RED, WHITE, plain, trial_result
from tests.support.made_report import WINDOWS, make_report
from tests.support.mlflow_server import closed_port
from tests.support.s3_server import s3_bucket, s3_endpoint, s3_server  # noqa: F401 (fixtures)

KEPT = trial_result(4, WINDOWS)
JANUARY, FEBRUARY, MARCH = (f"2026-0{month}-01T00:00:00+00:00" for month in (1, 2, 3))


def database(workspace: Path) -> str:
    """Return the URI of the default tracking database of a workspace."""
    return f"sqlite:///{workspace}/mlflow.db"


def track_report(workspace: Path, uri: str | None = None, run_id: str = "run-1", created_at: str = JANUARY) -> Tracking:
    """Report a run of the collection ``#paris`` and record it at `uri`."""
    storage = LocalStorage(str(workspace))
    make_report(storage, "#paris", run_id, created_at)
    return Tracking(**record_run(storage, load_run(storage, "#paris", run_id, uri))["tracking"])


def all_runs(uri: str) -> list[Any]:
    """Return all runs of the experiment that are not deleted."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return list(client.search_runs([client.get_experiment_by_name("#paris").experiment_id]))


def runs(uri: str) -> dict[str, Any]:
    """Return all runs of the experiment that are not deleted, by name."""
    found = all_runs(uri)
    named = {run.info.run_name: run for run in found}
    assert len(named) == len(found), "two runs have the same name"
    return named


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tracking]:
    """A run recorded in the database of its workspace: the URI of the database, and the result of tracking."""
    workspace = tmp_path_factory.mktemp("work space")
    tracking = track_report(workspace)
    return database(workspace), tracking


def test_a_job_is_a_finished_parent_with_a_finished_run_per_trial(recorded: tuple[str, Tracking]) -> None:
    uri, tracking = recorded
    found = runs(uri)
    assert set(found) == {"run-1", "k=2-seed=0", "k=4-seed=0"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert found["run-1"].info.run_id == tracking.run_id
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in found.items()}
    assert parents == {"run-1": None, "k=2-seed=0": tracking.run_id, "k=4-seed=0": tracking.run_id}


def test_a_trial_s_metrics_are_logged_at_their_iterations(recorded: tuple[str, Tracking]) -> None:
    from mlflow import MlflowClient

    uri, _ = recorded
    trial = runs(uri)["k=4-seed=0"]
    history = MlflowClient(tracking_uri=uri).get_metric_history(trial.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(10 * i, 100.0 - i) for i in range(1, 301)]
    expected = {"learning_rate", "largest_share", "smallest_share", "reassigned", "active_modules", "seconds"}
    assert expected <= set(trial.data.metrics)
    assert trial.data.metrics["final_loss"] == KEPT.loss
    assert trial.data.metrics["iterations"] == 3000


def test_a_labelled_collection_has_its_metrics_in_every_run(recorded: tuple[str, Tracking]) -> None:
    uri, _ = recorded
    found = {name: (run.data.metrics["accuracy"], run.data.metrics["nmi"]) for name, run in runs(uri).items()}
    assert found == {"run-1": (0.25, 0.5), "k=2-seed=0": (0.5, 0.5), "k=4-seed=0": (0.25, 0.5)}


def test_the_parent_has_the_metrics_of_ingest(recorded: tuple[str, Tracking]) -> None:
    uri, _ = recorded
    metrics = runs(uri)["run-1"].data.metrics
    found = {name: value for name, value in metrics.items() if name.startswith("ingest.")}
    expected = {"records": 7, "accepted": 6, "rejected.truncated": 1, "bytes": 5e6, "seconds": 2.5}
    assert found == {f"ingest.{name}": value for name, value in expected.items()}


def test_a_trial_s_parameters_are_its_own(recorded: tuple[str, Tracking]) -> None:
    uri, _ = recorded
    assert runs(uri)["k=2-seed=0"].data.params["clustering.k"] == "2"


def test_the_parent_has_the_configuration_and_the_selection(recorded: tuple[str, Tracking]) -> None:
    uri, _ = recorded
    parent = runs(uri)["run-1"].data
    assert parent.params["clustering.schedule.window"] == "60"
    tags = ("collection", "crawl_ids", "selected_k", "selected_seed")
    assert [parent.tags[name] for name in tags] == ["#paris", "monday", "4", "0"]


def test_artifacts_are_stored_in_the_workspace(recorded: tuple[str, Tracking]) -> None:
    from mlflow.artifacts import download_artifacts

    uri, tracking = recorded
    workspace = Path(uri.removeprefix("sqlite:///")).parent
    (mosaic,) = (workspace / "mlartifacts").rglob("mosaic.png")
    assert tracking.run_id is not None
    assert tracking.run_id in mosaic.parts
    folder = Path(download_artifacts(run_id=tracking.run_id, tracking_uri=uri))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    run, paths = load_run(LocalStorage(str(workspace)), "#paris", "run-1"), RunPaths("#paris", "run-1")
    keys = [paths.config, *report_files(run), paths.marker]
    assert names == {Path(key).relative_to(paths.folder).as_posix() for key in keys}
    assert (folder / "mosaic.png").read_bytes() == b"content of #paris/runs/run-1/mosaic.png"
    assert (folder / "clusters/cluster-003.webp").is_file()


def test_the_parent_has_tags_for_user_program_and_images(recorded: tuple[str, Tracking]) -> None:
    uri, _ = recorded
    tags = runs(uri)["run-1"].data.tags
    assert tags["mlflow.source.git.commit"] == "c0ffee"
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == (sys.argv[0], "LOCAL")
    assert tags["mlflow.user"]
    assert len(tags["data_digest"]) == 12


def test_the_images_are_the_parent_s_data_set(recorded: tuple[str, Tracking]) -> None:
    from mlflow.data import get_source

    uri, _ = recorded
    run = runs(uri)["run-1"]
    (used,) = run.inputs.dataset_inputs
    assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "clustering"}
    assert (used.dataset.name, used.dataset.digest) == ("#paris", run.data.tags["data_digest"])
    assert json.loads(used.dataset.profile) == {"images": 6, "records": 7, "shards": 1, "crawls": 1}
    workspace = Path(uri.removeprefix("sqlite:///")).parent
    assert json.loads(used.dataset.source)["shards"] == [f"{workspace}/#paris/crawls/monday/shards"]
    assert get_source(used.dataset).uri == f"{workspace}/#paris/crawls"


def predicted(uri: str, model: str) -> Any:
    """Return the predictions of the model at the URI `model` for a blue, a red, a green and a white image."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    images = np.stack([plain(color) for color in (BLUE, RED, GREEN, WHITE)])
    return mlflow.pyfunc.load_model(model).predict(images)


@pytest.mark.parametrize("address", ["models:/#paris@current", "models:/#paris/1", "runs:/{run}/model", "{model}"])
def test_the_model_is_loaded_by_any_of_its_addresses(recorded: tuple[str, Tracking], address: str) -> None:
    from mlflow import MlflowClient

    uri, tracking = recorded
    client = MlflowClient(tracking_uri=uri)
    (logged,) = client.search_logged_models([client.get_experiment_by_name("#paris").experiment_id])
    answer = predicted(uri, address.format(run=tracking.run_id, model=logged.model_uri))
    assert answer["cluster"].tolist() == [3, 2, 0, 1]
    kinds = {"cluster": "int32", "negative_log_likelihood": "float32", "posterior": "float32", "runner_up": "int32"}
    assert answer.dtypes.astype(str).to_dict() == {**kinds, "margin": "float32"}
    assert (answer["margin"] > 2).all(), "colours are fitted, so only the prior of the change tells flat images apart"


@pytest.mark.parametrize(
    ("images", "fault"),
    [
        (np.zeros((1, 16, 16, 3), np.float32), "dtype of input float32 does not match expected dtype uint8"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"Shape of input \(1, 8, 8, 3\) does not match .*\(-1, 16, 16, 3\)"),
        (np.zeros((16, 16, 3), np.uint8), r"Shape of input \(16, 16, 3\) does not match"),
    ],
)
def test_images_of_another_form_are_refused(
    recorded: tuple[str, Tracking], images: np.ndarray[Any, Any], fault: str
) -> None:
    import mlflow

    uri, tracking = recorded
    mlflow.set_tracking_uri(uri)
    with pytest.raises(mlflow.exceptions.MlflowException, match=fault):
        mlflow.pyfunc.load_model(tracking.model).predict(images)


def test_the_model_contains_no_picture(recorded: tuple[str, Tracking]) -> None:
    import mlflow

    uri, tracking = recorded
    folder = Path(mlflow.artifacts.download_artifacts(tracking.model, tracking_uri=uri))
    names = {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()}
    described = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "registered_model_meta"}
    assert names - described == {"code", "data"}
    assert [path.name for path in (folder / "data").iterdir()] == ["checkpoint.pt"]
    assert {path.suffix for path in (folder / "code").rglob("*") if path.is_file()} == {".py"}


LOAD_WITHOUT_PROJECT = """
import importlib.util, sys
sys.path[:] = [path for path in sys.path if not path or "site-packages" in path or "lib/python" in path]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path_hooks[:] = [hook for hook in sys.path_hooks if "editable" not in repr(hook)]
sys.path_importer_cache.clear()
assert importlib.util.find_spec("pipeline") is None, "this project is still importable"
import mlflow, numpy
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/#paris@current")
blue = numpy.broadcast_to(numpy.array((30, 40, 210), numpy.uint8), (2, 16, 16, 3))
print(model.predict(blue)["cluster"].tolist(), "ray" in sys.modules, sys.modules["pipeline"].__file__)
"""


def test_the_model_is_loaded_where_this_project_is_not_installed(
    recorded: tuple[str, Tracking], tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", LOAD_WITHOUT_PROJECT, recorded[0]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    answer = done.stdout.splitlines()[-1]
    assert answer.startswith("[3, 3] False ")
    assert answer.endswith("/artifacts/code/pipeline/__init__.py")


def versions(uri: str) -> dict[str, Any]:
    """Return the versions of the collection's registered model, by folder of the workspace and run."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.search_model_versions("name = '#paris'")
    named = {
        f"{Path(version.tags['visual_trends.workspace']).name}/{version.tags['visual_trends.run_id']}": version
        for version in found
    }
    assert len(named) == len(found), "a run has two versions"
    return named


def current(uri: str) -> str:
    """Return the id of the run whose version is current."""
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=uri).get_model_version_by_alias("#paris", "current")
    return str(found.tags["visual_trends.run_id"])


def test_a_version_has_tags_that_describe_it(recorded: tuple[str, Tracking]) -> None:
    uri, tracking = recorded
    (version,) = versions(uri).values()
    assert (version.tags["k"], version.tags["loss"]) == ("4", str(KEPT.loss))
    assert (version.tags["visual_trends.run_id"], version.run_id) == ("run-1", tracking.run_id)
    assert tracking.model == f"models:/#paris/{version.version}"


def test_a_restart_replaces_what_it_recorded(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    first, second = track_report(tmp_path), track_report(tmp_path)
    uri = database(tmp_path)
    found = runs(uri)
    assert {run.info.run_id for run in found.values()}.isdisjoint({first.run_id})
    assert found["run-1"].info.run_id == second.run_id
    assert [version.run_id for version in versions(uri).values()] == [second.run_id]
    assert current(uri) == "run-1"
    client = MlflowClient(tracking_uri=uri)
    (logged,) = client.search_logged_models([found["run-1"].info.experiment_id])
    assert logged.source_run_id == second.run_id


def test_the_run_that_was_first_reported_last_is_current(tmp_path: Path) -> None:
    uri = database(tmp_path)
    track_report(tmp_path, run_id="newer", created_at=FEBRUARY)
    track_report(tmp_path, run_id="older", created_at=JANUARY)
    assert current(uri) == "newer"
    # This holds even if the workspace lost the time of the first report by an interruption.
    track_report(tmp_path, run_id="older", created_at=MARCH)
    assert current(uri) == "newer"
    track_report(tmp_path, run_id="newest", created_at=MARCH)
    assert current(uri) == "newest"
    track_report(tmp_path, run_id="newest", created_at=MARCH)
    assert current(uri) == "newest"
    assert len(versions(uri)) == 3


def test_a_version_that_somebody_else_registered_is_left_alone(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    tracking = track_report(tmp_path)
    client = MlflowClient(tracking_uri=database(tmp_path))
    theirs = client.create_model_version("#paris", "file:///theirs", tracking.run_id)
    track_report(tmp_path)
    assert client.get_model_version("#paris", theirs.version).source == "file:///theirs"
    assert current(database(tmp_path)) == "run-1"


def test_artifacts_of_replaced_runs_are_deleted_even_if_the_user_deleted_the_run(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    first = track_report(tmp_path)
    MlflowClient(tracking_uri=database(tmp_path)).delete_run(first.run_id)
    second = track_report(tmp_path)
    third = track_report(tmp_path)
    assert {path.parts[-3] for path in (tmp_path / "mlartifacts").rglob("mosaic.png")} == {third.run_id}
    assert len(list((tmp_path / "mlartifacts").rglob("checkpoint.pt"))) == 1
    assert second.error is None


def test_untracking_deletes_the_records_of_one_run_only(tmp_path: Path) -> None:
    kept = track_report(tmp_path, run_id="run-1", created_at=JANUARY)
    track_report(tmp_path, run_id="run-2", created_at=FEBRUARY)
    storage, uri = LocalStorage(str(tmp_path)), database(tmp_path)
    for _ in range(2):
        untrack(storage, uri, "#paris", "run-2")
        assert {run.data.tags["visual_trends.run_id"] for run in all_runs(uri)} == {"run-1"}
        assert {path.parts[-3] for path in (tmp_path / "mlartifacts").rglob("mosaic.png")} == {kept.run_id}
        assert len(list((tmp_path / "mlartifacts").rglob("checkpoint.pt"))) == 1
        assert (current(uri), len(versions(uri))) == ("run-1", 1)
    untrack(storage, uri, "#rome", "run-1")
    untrack(storage, uri, "#paris", "run-1")
    assert not versions(uri)


def test_another_workspace_on_the_same_server_is_left_alone(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/shared.db"
    first = track_report(tmp_path / "a", uri)
    second = track_report(tmp_path / "b", uri)
    from mlflow import MlflowClient

    for tracking in (first, second):
        assert MlflowClient(tracking_uri=uri).get_run(tracking.run_id).info.lifecycle_stage == "active"
    assert set(versions(uri)) == {"a/run-1", "b/run-1"}


def test_two_jobs_at_once_on_a_new_database(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        outcomes = pool.starmap(track_report, [(tmp_path, None, name) for name in ("run-1", "run-2")])
    assert [tracking.error for tracking in outcomes] == [None, None]


def test_the_console_stays_quiet(tmp_path: Path) -> None:
    code = "from tests.integration.test_tracking import *; track_report(Path(sys.argv[1]))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_a_server_that_is_down_causes_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"http://user:secret@127.0.0.1:{closed_port()}"
    started = time.monotonic()
    tracking = track_report(tmp_path, uri)
    assert time.monotonic() - started < 20
    assert tracking.run_id is None
    assert tracking.error
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 1
    assert mask(uri) in printed
    assert "secret" not in printed + tracking.uri + tracking.error


def test_an_artifact_that_cannot_be_uploaded_only_causes_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, paths = LocalStorage(str(tmp_path)), RunPaths("#paris", "run-1")
    run = make_report(storage, "#paris")
    storage.delete(paths.mosaic)
    tracking = Tracking(**record_run(storage, run)["tracking"])
    assert tracking.error
    assert tracking.error.startswith("mosaic.png: ")
    assert tracking.model == "models:/#paris/1"
    assert "warning" in capsys.readouterr().out
    uploaded = {path.name for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()}
    assert {"clusters.parquet", "run.json", "checkpoint.pt"} <= uploaded
    assert "mosaic.png" not in uploaded
    assert runs(database(tmp_path))["run-1"].info.status == "FINISHED"


def test_a_missing_model_only_causes_a_warning(tmp_path: Path) -> None:
    storage, paths = LocalStorage(str(tmp_path)), RunPaths("#paris", "run-1")
    run = make_report(storage, "#paris")
    storage.delete(paths.checkpoint("k=4-seed=0"))
    tracking = Tracking(**record_run(storage, run)["tracking"])
    assert tracking.error
    assert tracking.error.startswith("model: cannot read")
    assert tracking.model is None
    assert runs(database(tmp_path))["run-1"].info.run_id == tracking.run_id


def test_a_hashtag_s_artifacts_have_a_folder_of_their_own_in_s3(tmp_path: Path, s3_bucket: str) -> None:  # noqa: F811
    local, remote = LocalStorage(str(tmp_path)), S3Storage(f"s3://{s3_bucket}/trends")
    make_report(local, "#paris")
    for key in local.list("#paris"):
        remote.write_bytes(key, local.read_bytes(key))
    uri = f"sqlite:///{tmp_path}/elsewhere.db"
    tracking = record_run(remote, load_run(remote, "#paris", "run-1", uri))["tracking"]
    assert tracking["error"] is None
    kept = list(remote.list("mlartifacts"))
    assert f"mlartifacts/%23paris/{tracking['run_id']}/artifacts/run.json" in kept
    assert all(key.startswith("mlartifacts/%23paris/") for key in kept)
    assert predicted(uri, "models:/#paris@current")["cluster"].tolist() == [3, 2, 0, 1]


def test_any_name_of_a_collection_is_valid_for_a_registered_model(tmp_path: Path) -> None:
    import mlflow

    storage, name = LocalStorage(str(tmp_path)), "#été=1+2.3_x-"
    tracking = record_run(storage, make_report(storage, name))["tracking"]
    mlflow.set_tracking_uri(database(tmp_path))
    for address in (f"models:/{name}@current", tracking["model"]):
        assert mlflow.pyfunc.load_model(address).predict(plain(RED)[None])["cluster"].tolist() == [2]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://user:secret@host:5000/x", "http://host:5000/x"),
        ("postgresql://me:p%40ss@db/mlflow", "postgresql://db/mlflow"),
        ("sqlite:////a@b/mlflow.db", "sqlite:////a@b/mlflow.db"),
        (
            "no route to http://me:secret@host/api, see me@example.org",
            "no route to http://host/api, see me@example.org",
        ),
    ],
)
def test_credentials_are_redacted(uri: str, expected: str) -> None:
    assert mask(uri) == expected


@pytest.mark.parametrize("name", ["a%20b", "what?x=1#y"])
def test_a_workspace_may_have_any_path(name: str, tmp_path: Path) -> None:
    tracking = track_report(tmp_path / name)
    assert (tracking.error, tracking.model) == (None, "models:/#paris/1")
    assert {path.name for path in tmp_path.iterdir()} == {name}
    assert {path.name for path in (tmp_path / name).iterdir()} >= {"mlflow.db", "mlartifacts", "#paris"}
    untrack(
        LocalStorage(str(tmp_path / name)), server.default_uri(LocalStorage(str(tmp_path / name))), "#paris", "run-1"
    )
    assert not list((tmp_path / name / "mlartifacts").rglob("mosaic.png"))


def test_a_moved_workspace_keeps_its_artifacts_and_writes_new_ones_beside_them(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    track_report(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert track_report(tmp_path / "new", run_id="run-2", created_at=FEBRUARY).error is None
    assert not (tmp_path / "old").exists()
    client = MlflowClient(tracking_uri=database(tmp_path / "new"))
    for run in runs_named(database(tmp_path / "new"), "run-1", "run-2"):
        copy = client.download_artifacts(run.info.run_id, "mosaic.png", str(tmp_path))
        assert Path(copy).stat().st_size > 0
    versions = client.search_model_versions("name='#paris'")
    assert {str(version.source).startswith("models:/") for version in versions} == {True} or all(
        "/new/" in str(version.source) for version in versions
    )


def runs_named(uri: str, *names: str) -> list[Any]:
    return [run for run in all_runs(uri) if run.info.run_name in names]


def test_a_deleted_experiment_is_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow import MlflowClient

    track_report(tmp_path)
    client = MlflowClient(tracking_uri=database(tmp_path))
    client.delete_experiment(client.get_experiment_by_name("#paris").experiment_id)
    tracking = track_report(tmp_path, run_id="run-2", created_at=FEBRUARY)
    assert tracking.error is None
    assert "experiment #paris, which was deleted in MLflow, is restored" in capsys.readouterr().out
    assert len(runs_named(database(tmp_path), "run-2")) == 1

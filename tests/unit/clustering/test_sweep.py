from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.clustering.sweep import check_k, check_run_id, elbow, open_run, select, sweep
from pipeline.clustering.trial import Trial, TrialResult, TrialTask
from pipeline.config import ClusteringConfig, JobConfig, load_config
from pipeline.errors import ConfigError, StorageError
from pipeline.paths import RunPaths
from pipeline.records import Crawl
from pipeline.storage import LocalStorage, write_json


def result(k: int, loss: float, seed: int = 0) -> TrialResult:
    return TrialResult(
        k=k,
        seed=seed,
        loss=loss,
        iterations=1,
        image_passes=1,
        seconds=1.0,
        workers=1,
        stages=[],
        history=[],
        clusters=[],
    )


def crawl(digest: str) -> Crawl:
    return Crawl("c", "x", n_shards=1, records=9, accepted=9, rejected={}, image_size=64, digest=digest)


def test_the_elbow_is_the_point_after_which_gains_are_small() -> None:
    assert elbow([2, 4, 6, 8, 10, 12], [100, 60, 22, 20, 18, 16]) == 2


def test_the_elbow_does_not_depend_on_the_unit_of_the_loss() -> None:
    losses = [100.0, 60.0, 22.0, 20.0, 18.0]
    assert elbow([4, 8, 16, 32, 64], losses) == elbow([4, 8, 16, 32, 64], [x * 1e-6 - 3e4 for x in losses])


@pytest.mark.parametrize(
    ("k", "losses", "expected"), [([5], [1.0], 0), ([5, 9], [2.0, 1.0], 1), ([1, 2, 3], [1, 1, 1], 0)]
)
def test_few_or_flat_trials(k: list[int], losses: list[float], expected: int) -> None:
    assert elbow(k, losses) == expected


def test_a_loss_without_elbow_keeps_the_lowest() -> None:
    assert elbow([1, 2, 3], [10.0, 9.0, 1.0]) == 2


def test_the_reason_describes_the_selection() -> None:
    assert select([result(4, 3.0), result(8, 1.0)], select_k=None)[1] == "lowest loss"
    assert select([result(2, 9.0), result(4, 2.0), result(8, 1.0)], select_k=None)[1] == "elbow of the loss"


def test_of_several_seeds_the_lowest_loss_counts() -> None:
    trials = [result(4, 3.0), result(4, 2.0, seed=1), result(8, 2.5), result(8, 1.5, seed=1), result(8, 1.8, seed=2)]
    chosen, why = select(trials, select_k=None)
    assert (chosen.k, chosen.seed) == (8, 1)
    assert why == "lowest loss; seed 1 has the lowest loss of 3"
    assert select(trials, select_k=4)[0].seed == 1


def test_the_users_k_wins() -> None:
    chosen, why = select([result(4, 3.0), result(8, 1.0)], select_k=4)
    assert chosen.k == 4 and "user" in why


def test_k_above_the_number_of_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="32 is above the 9"):
        check_k(ClusteringConfig(k=[4, 32]), 9, "images")


def job(**values: Any) -> JobConfig:
    return load_config(None, {"collection": "c", "source": "s", **values}, [])


def test_a_run_is_found_again_and_never_mixed_up(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    run = open_run(storage, job(), [crawl("a")])
    assert open_run(storage, job(), [crawl("a")]) == run
    assert open_run(storage, job(), [crawl("b")]) != run, "other images, another run"
    assert open_run(storage, job(**{"clustering.batch_size": 8}), [crawl("a")]) != run, "another model, another run"
    assert open_run(storage, job(**{"clustering.workers": 2}), [crawl("a")]) == run, "only other resources"
    assert open_run(storage, job(**{"clustering.k": [3]}), [crawl("a")]) == run, "one more trial"


def test_the_input_of_the_encoder_tells_runs_apart(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    run = open_run(storage, job(), [crawl("a")])
    small = job(**{"clustering.encoder_px": 16})
    assert open_run(storage, small, [crawl("a")]) != run
    with pytest.raises(ConfigError, match=r"clustering\.encoder_px"):
        open_run(storage, small.model_copy(update={"run_id": run.run_id}), [crawl("a")])
    named = open_run(storage, small.model_copy(update={"run_id": "mine"}), [crawl("a")])
    with pytest.raises(ConfigError, match=r"clustering\.encoder_px"):
        open_run(storage, job(run_id=named.run_id), [crawl("a")])


def test_a_crawl_that_brings_nothing_new_changes_no_run(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    nothing_new = replace(crawl("empty"), accepted=0)
    assert open_run(storage, job(), [crawl("a"), nothing_new]) == open_run(storage, job(), [crawl("a")])


def test_a_run_id_that_belongs_to_another_run_is_refused(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    named = job(run_id="mine")
    check_run_id(storage, named)
    open_run(storage, named, [crawl("a")])
    check_run_id(storage, named)
    other = job(run_id="mine", **{"clustering.batch_size": 8})
    with pytest.raises(ConfigError, match=r"clustering\.batch_size"):
        check_run_id(storage, other)
    with pytest.raises(ConfigError, match=r"clustering\.batch_size"):
        open_run(storage, other, [crawl("a")])
    with pytest.raises(ConfigError, match="the images"):
        open_run(storage, named, [crawl("b")])


def test_a_trial_without_its_model_is_not_done(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    run = RunPaths("c", "r")
    write_json(storage, run.trial_marker("k=4-seed=0"), result(4, 1.0).to_json())
    task = TrialTask(storage, run, ClusteringConfig(k=[4]), Trial(4, 0), [], 0)
    assert not task.is_done()
    storage.write_bytes(run.checkpoint("k=4-seed=0"), b"x")
    assert task.is_done()


def test_an_invalid_result_is_named(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    run = RunPaths("c", "r")
    write_json(storage, run.trial_marker("k=4-seed=0"), {})
    storage.write_bytes(run.checkpoint("k=4-seed=0"), b"x")
    with pytest.raises(StorageError, match=r"trial\.json: not a trial's result; delete it"):
        sweep(storage, run, ClusteringConfig(k=[4]), [], train=None)


def test_the_stored_configuration_can_be_used_again(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    run = open_run(storage, job(tracking_uri="http://me:secret@host"), [crawl("a")])
    stored = Path(storage.uri(run.config))
    assert load_config(stored, {}, []) == job()
    assert "secret" not in stored.read_text()

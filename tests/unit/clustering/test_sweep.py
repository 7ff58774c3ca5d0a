from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.clustering.sweep import check_k, elbow, open_run, select
from pipeline.clustering.trial import TrialResult
from pipeline.config import ClusteringConfig, load_config
from pipeline.errors import ConfigError
from pipeline.records import Crawl
from pipeline.storage import LocalStorage


def result(k: int, loss: float) -> TrialResult:
    return TrialResult(
        k=k, seed=0, loss=loss, iterations=1, image_passes=1, seconds=1.0, workers=1, stages=[], history=[]
    )


def crawl(digest: str) -> Crawl:
    return Crawl("c", "x", n_shards=1, records=9, accepted=9, rejected={}, image_size=64, digest=digest)


def test_the_elbow_is_where_the_gain_breaks_off() -> None:
    assert elbow([2, 4, 6, 8, 10, 12], [100, 60, 22, 20, 18, 16]) == 2


def test_units_of_the_loss_do_not_move_the_elbow() -> None:
    losses = [100.0, 60.0, 22.0, 20.0, 18.0]
    assert elbow([4, 8, 16, 32, 64], losses) == elbow([4, 8, 16, 32, 64], [x * 1e-6 - 3e4 for x in losses])


@pytest.mark.parametrize(
    ("k", "losses", "expected"), [([5], [1.0], 0), ([5, 9], [2.0, 1.0], 1), ([1, 2, 3], [1, 1, 1], 0)]
)
def test_few_or_flat_trials(k: list[int], losses: list[float], expected: int) -> None:
    assert elbow(k, losses) == expected


def test_a_loss_without_elbow_keeps_the_lowest() -> None:
    assert elbow([1, 2, 3], [10.0, 9.0, 1.0]) == 2


def test_the_users_k_wins() -> None:
    chosen, why = select([result(4, 3.0), result(8, 1.0)], select_k=4)
    assert chosen.k == 4 and "user" in why


def test_k_above_the_number_of_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="32 is above the 9"):
        check_k(ClusteringConfig(k=[4, 32]), 9, "images")


def test_a_run_is_found_again_and_never_mixed_up(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    config = load_config(None, {"collection": "c", "source": "s", "clustering.k": [4]}, [])
    run = open_run(storage, config, [crawl("a")])
    assert open_run(storage, config, [crawl("a")]) == run
    assert open_run(storage, config, [crawl("b")]) != run, "other images, another run"
    more_workers = load_config(None, {"collection": "c", "source": "s", "clustering.k": [4]}, ["clustering.workers=2"])
    assert open_run(storage, more_workers, [crawl("a")]) == run, "how a run is carried out does not change it"

    named = load_config(None, {"collection": "c", "source": "s", "clustering.k": [4], "run_id": "mine"}, [])
    open_run(storage, named, [crawl("a")])
    other = load_config(None, {"collection": "c", "source": "s", "clustering.k": [5], "run_id": "mine"}, [])
    with pytest.raises(ConfigError, match=r"clustering\.k"):
        open_run(storage, other, [crawl("a")])
    with pytest.raises(ConfigError, match="the images"):
        open_run(storage, named, [crawl("b")])


def test_the_stored_configuration_can_be_used_again(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    config = load_config(None, {"collection": "c", "source": "s", "clustering.k": [4]}, [])
    run = open_run(storage, config, [crawl("a")])
    assert load_config(Path(storage.uri(run.config)), {}, []) == config

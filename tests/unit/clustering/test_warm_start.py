"""Warm start: a run starts from the model of an earlier run of its collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.clustering.checkpoint import CheckpointWriter, load_method, model_state
from pipeline.clustering.data.images import ImageSet, to_float
from pipeline.clustering.earlier_run import earlier_checkpoint, with_earlier_run
from pipeline.clustering.model.build import build_method
from pipeline.clustering.model.dti import DTI
from pipeline.clustering.training import TrialTraining
from pipeline.clustering.trial import Trial
from pipeline.clustering.warm_start import take_over
from pipeline.config import ClusteringConfig, JobConfig, dump_config, load_config
from pipeline.errors import ConfigError, StorageError
from pipeline.paths import RunPaths
from pipeline.storage import LocalStorage, write_json
from tests.support.trial_tasks import trial_task
from tests.unit.clustering.test_training import collection

CPU = torch.device("cpu")
EARLIER = "c/runs/earlier/trials/k=3-seed=0/checkpoint.pt"


def configuration(k: int = 3) -> ClusteringConfig:
    schedule = {"window": 5, "min_iterations": 10, "max_iterations": 40, "final_iterations": 10}
    values = {"k": [k], "transforms": ["color"], "batch_size": 8, "precision": "float32", "schedule": schedule}
    return ClusteringConfig.model_validate(values)


@pytest.fixture
def earlier(tmp_path: Path) -> LocalStorage:
    """Storage with a trained model of three prototypes at the key `EARLIER`."""
    storage = LocalStorage(str(tmp_path))
    TrialTraining(trial_task(storage, configuration(), Trial(3, 0), "earlier"), ImageSet.of(collection()), CPU).run()
    return storage


def taken_over(storage: LocalStorage, k: int, images: Tensor) -> DTI:
    method = build_method(configuration(k), torch.rand(k, 3, 12, 12), seed=5)
    take_over(method, storage, EARLIER, ImageSet.of(images), seed=0)
    method.activate(0, learn_variances=True)
    return method.eval()


def test_the_same_k_starts_with_the_same_losses(earlier: LocalStorage) -> None:
    images = to_float(collection())
    loss_B = taken_over(earlier, 3, collection()).assign(images).loss_B
    assert torch.allclose(loss_B, load_method(earlier, EARLIER).assign(images).loss_B)


def test_a_smaller_k_keeps_the_largest_clusters(earlier: LocalStorage) -> None:
    before = load_method(earlier, EARLIER)
    kept = before.shares_K().argsort(descending=True)[:2]
    assert torch.equal(taken_over(earlier, 2, collection()).prototypes, before.prototypes[kept])


def test_new_prototypes_start_from_the_images_that_were_explained_worst(earlier: LocalStorage) -> None:
    """The collection has eight images of a new kind; the two new prototypes start from two of them."""
    unseen = torch.zeros(8, 3, 12, 12, dtype=torch.uint8)
    unseen[:, :, ::2] = 255
    unseen[:, 0, 0, 0] = torch.arange(8)
    images = torch.cat([collection(72), unseen])
    grown = taken_over(earlier, 5, images)
    for prototype in grown.prototypes[3:]:
        assert any(torch.equal(prototype, image) for image in to_float(unseen))
    assert not torch.equal(grown.prototypes[3], grown.prototypes[4])
    assert torch.equal(grown.prototypes[:3].sort(0).values, load_method(earlier, EARLIER).prototypes.sort(0).values)
    transformed = grown.assign(to_float(unseen))
    assert (transformed.cluster_B >= 3).all(), "the new prototypes explain the new images"
    assert transformed.parameters["color"].abs().max() < 0.05, "their own colours"


def test_training_starts_with_all_modules_and_ends_earlier(earlier: LocalStorage) -> None:
    images = ImageSet.of(collection())
    scratch = TrialTraining(trial_task(earlier, configuration(), Trial(3, 1), "scratch"), images, CPU).run()
    task = trial_task(earlier, configuration(), Trial(3, 1), "warm", EARLIER)
    warm = TrialTraining(task, images, CPU).run()
    assert [stage.modules for stage in warm.stages] == [["color", "variances"], ["color", "variances"]]
    assert warm.history[0].loss < scratch.history[0].loss
    assert warm.iterations < scratch.iterations


def job(**values: Any) -> JobConfig:
    return load_config(None, {"collection": "c", "source": "s", **values}, [])


def finished(storage: LocalStorage, run_id: str, digest: str, day: int, config: JobConfig) -> None:
    paths = RunPaths("c", run_id)
    trials = [{"k": 4, "seed": 0, "loss": 2.0}, {"k": 4, "seed": 1, "loss": 1.0}, {"k": 8, "seed": 0, "loss": 0.5}]
    storage.write_bytes(paths.config, dump_config(config).encode())
    for trial in trials:
        storage.write_bytes(paths.checkpoint(Trial(int(trial["k"]), int(trial["seed"])).name), b"")
    write_json(
        storage,
        paths.marker,
        {
            "run_id": run_id,
            "created_at": f"2026-01-0{day}T00:00:00+00:00",
            "crawls": [{"digest": digest, "images": 9}],
            "trials": trials,
            "selected": {"k": 8, "seed": 0},
        },
    )


def test_the_latest_run_of_other_crawls_is_found(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    requested = job(**{"clustering.warm_start": "latest"})
    assert with_earlier_run(storage, requested, {"a"}).clustering.warm_start is None, "there is no earlier run"
    finished(storage, "first", "a", 1, job())
    finished(storage, "other", "b", 2, job(**{"clustering.transforms": ["affine"]}))
    finished(storage, "own", "c", 3, job())
    assert with_earlier_run(storage, requested, {"c"}).clustering.warm_start == "first"
    assert with_earlier_run(storage, requested, {"a", "c"}).clustering.warm_start == "own"


def test_a_trial_starts_from_the_best_trial_of_its_k_or_the_selected_one(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    finished(storage, "first", "a", 1, job())
    assert earlier_checkpoint(storage, "c", "first", 4) == RunPaths("c", "first").checkpoint("k=4-seed=1")
    assert earlier_checkpoint(storage, "c", "first", 16) == RunPaths("c", "first").checkpoint("k=8-seed=0")


def test_missing_and_invalid_files_are_named(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    finished(storage, "first", "a", 1, job())
    storage.delete(RunPaths("c", "first").checkpoint("k=8-seed=0"))
    with pytest.raises(ConfigError, match="does not exist; choose another run"):
        earlier_checkpoint(storage, "c", "first", 16)
    write_json(storage, RunPaths("c", "odd").marker, {"run_id": "odd"})
    with pytest.raises(StorageError, match=r"odd/run\.json: not the document of a run"):
        with_earlier_run(storage, job(**{"clustering.warm_start": "latest"}), {"b"})


def test_an_incompatible_run_is_refused(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    finished(storage, "first", "a", 1, job(**{"ingest.image_size": 64, "clustering.transforms": ["affine"]}))
    with pytest.raises(ConfigError, match="'gone' is not a finished run of c"):
        with_earlier_run(storage, job(**{"clustering.warm_start": "gone"}), set())
    with pytest.raises(ConfigError, match=r"run first differs in ingest.image_size, clustering.transforms"):
        with_earlier_run(storage, job(**{"clustering.warm_start": "first"}), set())


def test_a_run_of_another_version_is_refused_and_never_the_latest(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    finished(storage, "old", "a", 1, job())
    key = RunPaths("c", "old").config
    stored = storage.read_bytes(key).decode().replace("restart_below:", "reassign_below:")
    storage.write_bytes(key, stored.encode())
    with pytest.raises(ConfigError, match=r"run old differs in clustering.reassign_below; choose another run"):
        with_earlier_run(storage, job(**{"clustering.warm_start": "old"}), set())
    latest = with_earlier_run(storage, job(**{"clustering.warm_start": "latest"}), set())
    assert latest.clustering.warm_start is None


def test_a_model_is_restored_from_its_stored_state(earlier: LocalStorage) -> None:
    method = taken_over(earlier, 4, collection())
    CheckpointWriter(earlier, "grown.pt", print).finish({**model_state(method, configuration(4)), "optimizer": None})
    assert torch.equal(load_method(earlier, "grown.pt").prototypes, method.prototypes)

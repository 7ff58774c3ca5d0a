"""Two workers in separate processes together get the results of a single worker."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from pipeline.clustering.data.images import ImageSet
from pipeline.clustering.model.build import build_method
from pipeline.clustering.model.dti import DTI
from pipeline.clustering.training import TrialTraining
from pipeline.clustering.trial import Trial
from pipeline.clustering.warm_start import take_over
from pipeline.clustering.workers import range_over_workers, rank_and_world_size, sum_over_workers
from pipeline.errors import StorageError
from pipeline.storage import LocalStorage
from tests.support.trial_tasks import trial_task
from tests.support.worker_processes import process_group
from tests.unit.clustering.test_training import CHECKPOINT, collection, configuration, training

CPU = torch.device("cpu")


def grown(folder: Path) -> DTI:
    """Return a model of five prototypes, warm-started from the three that were trained in `folder`."""
    method = build_method(configuration(), torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0)), seed=5)
    take_over(method, LocalStorage(str(folder)), CHECKPOINT, ImageSet.of(collection(600)), seed=0)
    return method


def work(rank: int, world_size: int, folder: str) -> None:
    """Run one worker; an error in it fails the test."""
    with process_group(rank, world_size, folder):
        assert rank_and_world_size() == (rank, 2)
        assert sum_over_workers(torch.tensor([1.0, rank])).tolist() == [2, 1]
        assert range_over_workers(3 + rank, CPU) == (3, 4)
        torch.save(grown(Path(folder)).state_dict(), Path(folder) / f"model{rank}.pt")
        # Only the first worker's folder has a checkpoint.
        seen = LocalStorage(folder if rank == 0 else f"{folder}/elsewhere")
        with pytest.raises(StorageError, match="workers read different checkpoints, of iterations 0 to 3; check"):
            TrialTraining(trial_task(seen, configuration(), Trial(3, 1)), ImageSet.of(collection()), CPU)


@pytest.mark.slow
def test_workers_agree_and_share_the_search_for_the_worst_explained_images(tmp_path: Path) -> None:
    training(tmp_path, until=3).run()
    expected = grown(tmp_path).state_dict()
    spawn(work, (2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"model{rank}.pt", weights_only=True)
        for name, value in expected.items():
            if name.startswith(("prototypes", "scales", "mixing")):
                assert torch.equal(found[name], value), name


def test_a_single_worker_needs_no_process_group() -> None:
    assert rank_and_world_size() == (0, 1)
    assert sum_over_workers(torch.tensor([2.0])).tolist() == [2]
    assert range_over_workers(-4, CPU) == (-4, -4)

"""Two workers, in processes of their own, know together what one knows alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from pipeline.clustering.data.images import ImageSet
from pipeline.clustering.model.build import build_method
from pipeline.clustering.model.dti import DTI
from pipeline.clustering.training import TrialTraining
from pipeline.clustering.trial import Trial
from pipeline.clustering.warm_start import take_over
from pipeline.clustering.workers import place, range_of, summed
from pipeline.errors import StorageError
from pipeline.storage import LocalStorage
from tests.support.worker_processes import begin_worker
from tests.unit.clustering.test_training import collection, configuration, training

CPU = torch.device("cpu")


def grown(folder: Path) -> DTI:
    """Five prototypes, two of them new, from the three that were trained in `folder`."""
    method = build_method(configuration(), torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0)), seed=5)
    take_over(method, LocalStorage(str(folder)), "t/checkpoint.pt", ImageSet.of(collection(600)), seed=0)
    return method


def work(rank: int, world_size: int, folder: str) -> None:
    """Body of one worker; what is wrong ends the test."""
    begin_worker(rank, world_size, folder)
    assert place() == (rank, 2)
    assert summed(torch.tensor([1.0, rank])).tolist() == [2, 1]
    assert range_of(3 + rank, CPU) == (3, 4)
    torch.save(grown(Path(folder)).state_dict(), Path(folder) / f"model{rank}.pt")
    # Only the first worker's folder has a checkpoint.
    seen = LocalStorage(folder if rank == 0 else f"{folder}/elsewhere")
    with pytest.raises(StorageError, match="workers read it at iterations 0 to 3; do all nodes see the same"):
        TrialTraining(
            configuration(), Trial(3, 1), ImageSet.of(collection()), seen, "t/checkpoint.pt", "t/best.pt", CPU
        )
    dist.destroy_process_group()


def test_workers_agree_and_share_the_search_for_what_is_explained_worst(tmp_path: Path) -> None:
    training(tmp_path).run(until=3)
    expected = grown(tmp_path).state_dict()
    spawn(work, (2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"model{rank}.pt", weights_only=True)
        for name, value in expected.items():
            if name.startswith(("prototypes", "scales", "mixing")):
                assert torch.equal(found[name], value), name


def test_a_worker_alone_is_all_there_are() -> None:
    assert place() == (0, 1)
    assert summed(torch.tensor([2.0])).tolist() == [2]
    assert range_of(-4, CPU) == (-4, -4)

from __future__ import annotations

import torch

from pipeline.clustering.model.build import build_method
from pipeline.clustering.model.dti import DTI
from pipeline.clustering.reassign import NOISE_STD, reassign_tiny
from pipeline.clustering.seeding import generator
from pipeline.config import ClusteringConfig


def trained() -> tuple[DTI, torch.optim.Adam]:
    """Return a small model and its optimiser after some steps, so that the optimiser has moments."""
    config = ClusteringConfig(k=[4], transforms=["color", "affine"], precision="float32")
    torch.manual_seed(0)
    model = build_method(config, torch.rand(4, 3, 12, 12), seed=0)
    model.activate(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(torch.rand(16, 3, 12, 12)).loss.backward()
        optimizer.step()
    return model, optimizer


def test_a_tiny_cluster_becomes_a_copy_of_the_largest() -> None:
    model, optimizer = trained()
    before = [p.detach().clone() for p in model.prototype_parameters()]
    moments = [optimizer.state[p]["exp_avg"].clone() for p in model.prototype_parameters()]
    restarted = reassign_tiny(model, optimizer, torch.tensor([0.6, 0.04, 0.26, 0.1]), below=0.2, generator=generator(1))
    assert restarted == [1]
    for parameter, old, moment in zip(model.prototype_parameters(), before, moments, strict=True):
        torch.testing.assert_close(parameter[1], old[0], atol=6 * NOISE_STD, rtol=0)
        torch.testing.assert_close(parameter[[2, 3]], old[[2, 3]], atol=0, rtol=0)
        assert torch.equal(optimizer.state[parameter]["exp_avg"][1], moment[0])
    assert not torch.equal(model.prototypes[0], model.prototypes[1])
    assert not torch.equal(model.prototypes[0], before[0][0]), "the donor is perturbed too"


def test_moments_are_copied_not_shared() -> None:
    model, optimizer = trained()
    reassign_tiny(model, optimizer, torch.tensor([0.6, 0.0, 0.3, 0.1]), below=0.2, generator=generator(1))
    state = optimizer.state[model.prototypes]["exp_avg"]
    kept = state[1].clone()
    state[0] += 1
    assert torch.equal(state[1], kept)


def test_nothing_happens_above_the_threshold() -> None:
    model, optimizer = trained()
    before = model.prototypes.detach().clone()
    assert (
        reassign_tiny(model, optimizer, torch.tensor([0.3, 0.05, 0.35, 0.3]), below=0.2, generator=generator(1)) == []
    )
    assert torch.equal(model.prototypes, before)


def test_workers_with_the_same_state_stay_the_same() -> None:
    (one, one_optimizer), (other, other_optimizer) = trained(), trained()
    torch.manual_seed(99)  # the global random state of a worker must not matter
    shares = torch.tensor([0.0, 0.7, 0.0, 0.3])
    reassign_tiny(one, one_optimizer, shares, below=0.2, generator=generator(7))
    torch.manual_seed(1)
    reassign_tiny(other, other_optimizer, shares, below=0.2, generator=generator(7))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from pipeline.clustering.data.images import ImageSet, to_float
from pipeline.clustering.model.build import build_method
from pipeline.clustering.model.dti import DTI
from pipeline.clustering.model.method import Assignment
from pipeline.clustering.split_merge import SPLIT_IMAGES, Explained, split_and_merge, split_of
from pipeline.config import ClusteringConfig, Method, TransformName
from tests.support.worker_processes import process_group

N = 90
SHAPES = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def images(light: bool) -> Tensor:
    """Return 30 noisy images of each of three pictures, uint8; with `light`, contrast and brightness change."""
    generator = torch.Generator().manual_seed(2)
    pictures = SHAPES.repeat_interleave(N // 3, 0)
    if light:
        gain, bias = torch.rand(2, N, 3, 1, 1, generator=generator)
        pictures = 0.3 + (0.4 + 0.4 * gain) * (pictures - 0.5) + 0.3 * bias
    noise = 0.02 * torch.randn(pictures.shape, generator=generator)
    return ((pictures + noise).clamp(0, 1) * 255).to(torch.uint8)


def misplaced(method: Method, transforms: list[TransformName], learn_variances: bool) -> tuple[DTI, torch.optim.Adam]:
    """Return a model with two prototypes of the first picture, one of both others, and moments in its optimiser."""
    config = ClusteringConfig(method=method, k=[3], transforms=transforms, precision="float32")
    model = build_method(config, torch.stack([SHAPES[0], SHAPES[0] + 0.01, SHAPES[1:].mean(0)]), seed=0)
    model.activate(len(config.predicted), learn_variances)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-9)
    model.loss(to_float(images(False))).loss.backward()
    optimizer.step()
    return model.eval(), optimizer


def explain(model: DTI, pictures: Tensor) -> Explained:
    return Explained.gather([torch.arange(len(pictures))], [model.assign(to_float(pictures))])


def total_loss(model: DTI, pictures: Tensor) -> float:
    return float(model.assign(to_float(pictures)).loss_B.double().sum())


CASES: list[tuple[Method, list[TransformName], bool]] = [
    ("gmm", [], False),
    ("gmm", [], True),
    ("kmeans", [], False),
    ("dti-gmm", ["color"], False),
    ("dti-kmeans", ["color"], False),
    ("dti-gmm", ["color", "affine"], True),
    ("dti-gmm", ["affine", "tps"], False),
]


@pytest.mark.parametrize(("method", "transforms", "learn_variances"), CASES)
def test_a_copy_restarts_as_one_half_of_a_mixed_cluster(
    method: Method, transforms: list[TransformName], learn_variances: bool
) -> None:
    """Afterwards each picture has a prototype, and the loss has fallen by what was expected."""
    pictures = images(light="color" in transforms)
    model, optimizer = misplaced(method, transforms, learn_variances)
    explained = explain(model, pictures)
    before, cost = total_loss(model, pictures), float(explained.removal_costs(3)[:2].min())
    split = split_of(model, explained, ImageSet.of(pictures), 2)
    assert split is not None
    restarts = split_and_merge(model, optimizer, explained, ImageSet.of(pictures), below=1.0)
    assert [s for _, s in restarts] == [2]
    assert restarts[0][0] in {0, 1}
    clusters = model.assign(to_float(pictures)).cluster_B.view(3, -1)
    assert (clusters == clusters[:, :1]).all()
    assert len(set(clusters[:, 0].tolist())) == 3
    # Colours and variances adapt to new prototypes, so more may be gained than was expected with them as they are.
    assert before - total_loss(model, pictures) > 0.9 * (split.gain - cost)
    if not transforms:
        assert before - total_loss(model, pictures) == pytest.approx(split.gain - cost, rel=0.1)


def test_what_has_no_weight_is_not_worth_a_split() -> None:
    """The images differ at the margins only, where the weights of pixels are almost 0."""
    pictures = torch.full((40, 1, 24, 24), 100, dtype=torch.uint8)
    pictures[20:, :, :3] = 250
    for weight_std, worth in ((3.0, False), (None, True)):
        config = ClusteringConfig(method="gmm", k=[2], loss_weight_std=weight_std)
        model = build_method(config, torch.full((2, 1, 24, 24), 0.5), seed=0)
        split = split_of(model, explain(model, pictures), ImageSet.of(pictures), 0)
        assert split is not None and (split.gain > 100) == worth


def test_prototypes_that_are_needed_do_not_restart() -> None:
    pictures = images(False)
    model, optimizer = misplaced("gmm", [], False)
    model.prototypes.data.copy_(SHAPES)
    kept = model.prototypes.detach().clone()
    assert split_and_merge(model, optimizer, explain(model, pictures), ImageSet.of(pictures), below=1.0) == []
    assert torch.equal(model.prototypes, kept)


def test_all_parameters_and_moments_are_copied_not_shared() -> None:
    pictures = images(False)
    model, optimizer = misplaced("dti-gmm", ["affine"], True)
    for parameter in model.prototype_parameters():
        parameter.data.add_(0.001 * torch.randn(parameter.shape))
        optimizer.state[parameter]["exp_avg"] = torch.randn(parameter.shape)
    ((removed, split),) = split_and_merge(model, optimizer, explain(model, pictures), ImageSet.of(pictures), below=1.0)
    for parameter in model.prototype_parameters():
        moments = optimizer.state[parameter]["exp_avg"]
        assert torch.equal(moments[removed], moments[split])
        if parameter is not model.prototypes:
            assert torch.equal(parameter[removed], parameter[split])
    moments[split] += 1
    assert not torch.equal(moments[removed], moments[split])


@pytest.mark.parametrize("before", [[0.2, 0.5, 0.3], [1 / 3, 1 / 3, 1 / 3]])
def test_a_restarted_prototype_and_the_other_half_share_their_mixing_proportions(before: list[float]) -> None:
    pictures = images(False)
    model, optimizer = misplaced("gmm", [], False)
    model.set_shares(torch.tensor(before))
    ((removed, split),) = split_and_merge(model, optimizer, explain(model, pictures), ImageSet.of(pictures), below=1.0)
    after = model.shares_K()
    assert after[removed] == after[split] == pytest.approx((before[removed] + before[split]) / 2)
    assert float(after.sum()) == pytest.approx(1)


def test_an_empty_cluster_costs_nothing() -> None:
    model, _ = misplaced("gmm", [], False)
    model.prototypes.data[1] = 5.0
    costs = explain(model, images(False)).removal_costs(3)
    assert costs[1] == 0
    assert (costs[[0, 2]] > 0).all()


def assigned(cluster: Tensor) -> Assignment:
    zero = torch.zeros(len(cluster))
    return Assignment(cluster, zero, zero, cluster, zero, {"affine": cluster[:, None].float()})


def test_the_latest_rows_of_different_images_are_taken() -> None:
    image = torch.tensor([4, 7, 4, 9, 7, 4, 2])
    cluster = torch.tensor([1, 1, 1, 1, 0, 1, 1])
    explained = Explained.gather([image], [assigned(cluster)])
    assert explained.latest_of(1).tolist() == [6, 5, 3, 1]
    many = Explained.gather([torch.arange(200)], [assigned(torch.ones(200, dtype=torch.int64))])
    assert many.latest_of(1).tolist() == list(range(199, 199 - SPLIT_IMAGES, -1))


def test_images_that_look_alike_have_no_split() -> None:
    pictures = images(False)[:1].expand(20, -1, -1, -1).contiguous()
    model, _ = misplaced("gmm", [], False)
    explained = explain(model, pictures)
    assert all(split_of(model, explained, ImageSet.of(pictures), cluster) is None for cluster in range(3))


def gather_as_worker(rank: int, folder: str) -> None:
    """Run one worker of the test below: it has every other pair of images of three batches of four."""
    images_of_batches = [torch.arange(4 * batch, 4 * batch + 4)[2 * rank : 2 * rank + 2] for batch in range(3)]
    with process_group(rank, 2, folder):
        explained = Explained.gather(images_of_batches, [assigned(image % 3) for image in images_of_batches])
    assert torch.equal(explained.image_N, torch.arange(12))
    assert torch.equal(explained.cluster_N, torch.arange(12) % 3)
    assert torch.equal(explained.parameters["affine"][:, 0], (torch.arange(12) % 3).float())


@pytest.mark.slow
def test_workers_gather_batches_in_the_order_of_one_worker(tmp_path: Path) -> None:
    spawn(gather_as_worker, (str(tmp_path),), nprocs=2)

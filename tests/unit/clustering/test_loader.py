from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clustering.loader import BatchStream, initial_images


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 4), st.integers(0, 5))
def test_every_epoch_holds_every_image_once(n_images: int, local: int, world: int, seed: int) -> None:
    """Whatever the sizes: the stream is a sequence of permutations, cut into full batches among the workers."""
    batch = local * world
    streams = [BatchStream(n_images, batch, seed, rank, world) for rank in range(world)]
    whole = BatchStream(n_images, batch, seed)
    drawn = []
    for iteration in range(3 * n_images // batch + 1):
        parts = torch.cat([stream.indices(iteration) for stream in streams])
        assert torch.equal(parts, whole.indices(iteration))
        drawn += parts.tolist()
    for epoch in range(len(drawn) // n_images):
        assert sorted(drawn[epoch * n_images : (epoch + 1) * n_images]) == list(range(n_images))


def test_a_batch_depends_on_its_number_alone() -> None:
    forward = BatchStream(30, 8, seed=1)
    batches = [forward.indices(i) for i in range(12)]
    assert torch.equal(BatchStream(30, 8, seed=1).indices(11), batches[11])
    assert not torch.equal(BatchStream(30, 8, seed=2).indices(0), batches[0])


def test_epochs_differ() -> None:
    stream = BatchStream(50, 50, seed=0)
    assert not torch.equal(stream.indices(0), stream.indices(1))


def test_initial_prototypes_are_different_images() -> None:
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 2, 2)
    chosen = initial_images(images, 10, seed=4)[:, 0, 0, 0] * 255
    assert sorted(chosen.round().int().tolist()) == list(range(10))


def test_alike_images_are_no_reason_to_start_from_one_twice() -> None:
    levels = torch.tensor([0, 0, 0, 0, 200], dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).clone()
    levels[:, 0, 0, 0] = torch.arange(5)
    levels[:, 0, 0, 1] = 4 - torch.arange(5)  # five images whose thumbnails are the same two
    small = torch.nn.functional.interpolate(levels.float(), scale_factor=8).to(torch.uint8)
    chosen = initial_images(small, 5, 0, "k-means++")
    assert len({round(float(image[0, 0, 0]) * 255) for image in chosen}) == 5


def test_far_initial_prototypes() -> None:
    """Three tight groups: k-means++ takes one image of each, as random images rarely do."""
    levels = torch.tensor([0, 120, 250], dtype=torch.uint8).repeat_interleave(40)
    images = levels[:, None, None, None].expand(-1, 1, 20, 24)
    for seed in range(5):
        chosen = initial_images(images, 3, seed, "k-means++")
        assert chosen.shape == (3, 1, 20, 24)
        assert sorted((chosen[:, 0, 0, 0] * 255).round().int().tolist()) == [0, 120, 250]

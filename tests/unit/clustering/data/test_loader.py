from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clustering.data.images import ImageSet
from pipeline.clustering.data.loader import BatchStream, EpochOrder, Loader
from pipeline.errors import ClusteringError


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 4), st.integers(0, 5))
def test_every_epoch_holds_every_image_once(n_images: int, local: int, world: int, seed: int) -> None:
    """For all sizes, the stream is a sequence of permutations, divided into full batches and among the workers."""
    batch = local * world
    streams = [BatchStream(EpochOrder([n_images], seed), batch, rank, world) for rank in range(world)]
    whole = BatchStream(EpochOrder([n_images], seed), batch)
    drawn = []
    for iteration in range(3 * n_images // batch + 1):
        parts = torch.cat([stream.indices(iteration) for stream in streams])
        assert torch.equal(parts, whole.indices(iteration))
        drawn += parts.tolist()
    for epoch in range(len(drawn) // n_images):
        assert sorted(drawn[epoch * n_images : (epoch + 1) * n_images]) == list(range(n_images))


def test_a_batch_depends_only_on_its_number() -> None:
    forward = BatchStream(EpochOrder([30], 1), 8)
    batches = [forward.indices(i) for i in range(12)]
    assert torch.equal(BatchStream(EpochOrder([30], 1), 8).indices(11), batches[11])
    assert not torch.equal(BatchStream(EpochOrder([30], 2), 8).indices(0), batches[0])


def test_epochs_differ() -> None:
    stream = BatchStream(EpochOrder([50], 0), 50)
    assert not torch.equal(stream.indices(0), stream.indices(1))


SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0)


@settings(max_examples=100)
@given(SIZES, st.integers(1, 40), st.integers(0, 3))
def test_a_window_is_used_up_before_the_next(sizes: list[int], window: int, epoch: int) -> None:
    """Each epoch holds each image once, and needs no more than the images of a window at a time."""
    order = EpochOrder(sizes, seed=3, window=window).permutation(epoch).tolist()
    assert sorted(order) == list(range(sum(sizes)))
    shard_of = [shard for shard, size in enumerate(sizes) for _ in range(size)]
    last_use = {shard_of[image]: position for position, image in enumerate(order)}
    begun: set[int] = set()
    for position, image in enumerate(order):
        begun.add(shard_of[image])
        in_use = [shard for shard in begun if last_use[shard] >= position]
        assert sum(sizes[shard] for shard in in_use) <= max(window, *(sizes[shard] for shard in in_use))


def test_streamed_images_are_shuffled_beyond_their_shards() -> None:
    order = EpochOrder([50] * 20, seed=0, window=250).permutation(0)
    shards = order.div(50, rounding_mode="floor")
    assert len(shards[:250].unique()) == 5, "a window holds five shards"
    assert len(shards[:32].unique()) == 5, "the shards of a window are mixed"


class Shards:
    """Shards of 10 images whose pixels are the image's index; counts how often each shard is read."""

    def __init__(self, n: int) -> None:
        self.read = [0] * n

    def open(self, index: int) -> np.ndarray:
        self.read[index] += 1
        return np.full((10, 1, 2, 2), index * 10, np.uint8) + np.arange(10, dtype=np.uint8)[:, None, None, None]


@pytest.mark.parametrize("resident", [None, 60])
def test_batches_are_the_images_of_the_stream(resident: int | None) -> None:
    """Batches follow the stream, in memory and streamed; streaming reads each shard once per epoch."""
    shards = Shards(12)
    images = ImageSet([10] * 12, shards.open, resident)
    stream = BatchStream(EpochOrder([10] * 12, seed=1, window=resident and resident // 2), 8)
    loader = Loader(images, stream, torch.device("cpu"))
    for iteration in range(45):  # three epochs
        found = (loader.batch(iteration) * 255).round().int()
        assert torch.equal(found, stream.indices(iteration).int()[:, None, None, None].expand(-1, 1, 2, 2))
    loader.close()
    assert max(shards.read) <= (2 if resident is None else 4), "three epochs, and a first read for the shape"


def test_a_resumed_loader_continues_at_its_iteration() -> None:
    images = ImageSet([10] * 4, Shards(4).open, 20)
    stream = BatchStream(EpochOrder([10] * 4, seed=1, window=10), 8)
    resumed = Loader(images, stream, torch.device("cpu"))
    assert torch.equal((resumed.batch(7) * 255).round().int()[:, 0, 0, 0], stream.indices(7).int())
    resumed.close()


def test_workers_share_the_images() -> None:
    images = ImageSet(
        [3, 0, 4], lambda index: np.full((max(3, index * 2), 1, 1, 1), index, np.uint8)[: [3, 0, 4][index]]
    )
    for world in (1, 2, 5):
        batches = [batch for rank in range(world) for batch in images.batches(2, rank, world)]
        assert sorted(torch.cat(batches).flatten().tolist()) == [0] * 3 + [2] * 4
        assert max(map(len, batches)) <= 2


def test_shards_of_different_shapes_are_refused() -> None:
    images = ImageSet([1, 1], lambda index: np.zeros((1, 3, 4 + index, 4), np.uint8))
    with pytest.raises(ClusteringError, match="shard 1 holds images of shape"):
        images[torch.tensor([0, 1])]


def test_a_collection_without_images_is_refused() -> None:
    with pytest.raises(ClusteringError, match="nothing to cluster"):
        ImageSet([0, 0], lambda _: np.empty((0, 0, 0, 0), np.uint8))

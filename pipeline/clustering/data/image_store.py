"""Decoded shards in Ray's object store: decoded once for all workers, and shared by the workers of a node.

A worker reads a shard without copying it, and a node without the shard gets it from another node over the network. A
shard that is lost with a process or a node is decoded again at the next request.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from pipeline.clustering.data.images import ImageSet, decode_shard
from pipeline.clustering.storage_retries import read_with_retries
from pipeline.clustering.trial import TrialTask
from pipeline.records import Pixels
from pipeline.shards import count_samples
from pipeline.storage import Storage

DECODING_PER_NODE = 2
"""Number of shards per node that are decoded at once; decoding must not take the CPUs from training."""
COUNTING_PER_NODE = 8
"""Number of shards per node whose images are counted at once."""
CONCURRENT_REQUESTS = 8
"""Number of shards that a worker requests at once."""
TASK_OPTIONS = {"num_cpus": 0, "scheduling_strategy": "SPREAD"}
"""Options of tasks that serve workers. Workers may hold all CPUs, so a task that requested one would never start."""
STORE_FRACTION = 0.8
"""Fraction of a node's object store that decoded images may fill."""


class ImageStore:
    """Actor that keeps decoded shards, and starts tasks that decode the others; one per job.

    Args:
        budget_bytes: size of the decoded shards that the store keeps, the most recently requested ones. Workers keep
            the shards that they use in addition.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._shards: OrderedDict[str, asyncio.Task[tuple[ray.ObjectRef, int]]] = OrderedDict()
        self._counts: dict[str, asyncio.Task[int]] = {}
        self._decode = ray.remote(num_returns=2, **TASK_OPTIONS)(_decode)
        self._count = ray.remote(**TASK_OPTIONS)(_count)
        nodes = max(1, len(ray.nodes()))
        self._decoding_slots = asyncio.Semaphore(DECODING_PER_NODE * nodes)
        self._counting_slots = asyncio.Semaphore(COUNTING_PER_NODE * nodes)

    async def shard(self, storage: Storage, key: str) -> list[ray.ObjectRef]:
        """Return a reference to the decoded shard, in a list, since Ray would wait for a bare reference.

        Raises the errors of `decode_shard`.
        """
        name = storage.uri(key)
        if name not in self._shards:
            self._shards[name] = asyncio.ensure_future(self._decoded(storage, key))
        self._shards.move_to_end(name)
        try:
            reference, _ = await asyncio.shield(self._shards[name])
        except BaseException:
            self._shards.pop(name, None)  # the next request tries again
            raise
        self._trim()
        return [reference]

    async def sizes(self, storage: Storage, keys: Sequence[str]) -> list[int]:
        """Return the number of images of each shard, counted once for all requests.

        Raises the errors of `count_samples`.
        """
        names = [storage.uri(key) for key in keys]
        for name, key in zip(names, keys, strict=True):
            counted = self._counts.get(name)
            if counted is None or (counted.done() and counted.exception()):  # a failed count is tried again
                self._counts[name] = asyncio.ensure_future(self._counted(storage, key))
        return list(await asyncio.gather(*(asyncio.shield(self._counts[name]) for name in names)))

    async def _counted(self, storage: Storage, key: str) -> int:
        async with self._counting_slots:
            return int(await self._count.remote(storage, key))

    async def _decoded(self, storage: Storage, key: str) -> tuple[ray.ObjectRef, int]:
        async with self._decoding_slots:
            pixels, n_bytes = self._decode.remote(storage, key)
            return pixels, await n_bytes

    def _trim(self) -> None:
        """Drop the least recently requested shards that exceed the budget."""
        decoded = [(name, task) for name, task in self._shards.items() if task.done() and not task.exception()]
        held = sum(task.result()[1] for _, task in decoded)
        for name, task in decoded[:-1]:
            if held <= self._budget:
                return
            held -= task.result()[1]
            del self._shards[name]


def _decode(storage: Storage, key: str) -> tuple[Pixels, int]:
    pixels = read_with_retries(lambda: decode_shard(storage, key), storage.uri(key))
    return pixels, pixels.nbytes


def _count(storage: Storage, key: str) -> int:
    return read_with_retries(lambda: count_samples(storage, key), storage.uri(key))


def kept_bytes() -> int:
    """Return the size of the decoded shards that the store may keep: most of the smallest node's object store."""
    stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    return int(STORE_FRACTION * min(stores))


def open_images(store: Any, task: TrialTask) -> ImageSet:
    """Return the images of `task`: in memory if all of them fit, streamed otherwise.

    Args:
        store: handle of an `ImageStore`.
        task: trial of these images; `task.config.image_memory_gb` limits the memory of a worker's images.

    Raises ClusteringError and StorageError as `ImageSet` and `decode_shard` do.
    """
    keys, memory_bytes = task.shard_keys, int(task.config.image_memory_gb * 2**30)

    def open_shard(index: int) -> Pixels:
        pixels: Pixels = ray.get(ray.get(store.shard.remote(task.storage, keys[index]))[0])
        return pixels

    if task.decoded_bytes <= memory_bytes:
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as threads:
            shards = list(threads.map(open_shard, range(len(keys))))
        return ImageSet([len(shard) for shard in shards], shards.__getitem__)
    sizes: list[int] = ray.get(store.sizes.remote(task.storage, list(keys)))
    image_bytes = task.decoded_bytes // max(1, sum(sizes))
    return ImageSet(sizes, open_shard, resident_images=max(1, memory_bytes // max(1, image_bytes)))

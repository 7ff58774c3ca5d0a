"""Decoded shards in Ray's object store: decoded once for all workers that want them, and shared by those of a node.

A worker sees a shard without copying it, and a node that has none gets it from another over the network. Whatever
is lost with a process or a node is decoded again by whoever asks next.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from pipeline.clustering.data.images import ImageSet, Pixels, decode_shard
from pipeline.clustering.patience import read_patiently
from pipeline.shards import count_samples
from pipeline.storage import Storage

DECODING_PER_NODE = 2
"""Shards that are decoded at once, for each node: decoding must not take the CPUs from those who learn."""
COUNTING_PER_NODE = 8
"""Shards that are counted at once, for each node."""
ASKING = 8
"""Shards that a worker asks for at once."""
EVERYWHERE = {"num_cpus": 0, "scheduling_strategy": "SPREAD"}
"""Of tasks that serve workers: those may hold all CPUs, and a task that asks for one would wait for ever."""
PART_OF_STORE = 0.8
"""Of a node's object store, what decoded images may fill."""


class ImageStore:
    """Actor that knows which shards are decoded, and has the others decoded; one per job.

    Args:
        budget_bytes: of decoded shards that are kept; those that were wanted last. Workers keep what they use besides.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._shards: OrderedDict[str, asyncio.Task[tuple[ray.ObjectRef, int]]] = OrderedDict()
        self._counts: dict[str, asyncio.Task[int]] = {}
        self._decode = ray.remote(num_returns=2, **EVERYWHERE)(_decode)
        self._count = ray.remote(**EVERYWHERE)(_count)
        nodes = max(1, len(ray.nodes()))
        self._slots = asyncio.Semaphore(DECODING_PER_NODE * nodes)
        self._counters = asyncio.Semaphore(COUNTING_PER_NODE * nodes)

    async def shard(self, storage: Storage, key: str) -> list[ray.ObjectRef]:
        """The decoded shard, as a reference in a list: Ray would wait for a bare one. Raises as `decode_shard`."""
        name = storage.uri(key)
        if name not in self._shards:
            self._shards[name] = asyncio.ensure_future(self._decoded(storage, key))
        self._shards.move_to_end(name)
        try:
            reference, _ = await asyncio.shield(self._shards[name])
        except BaseException:
            self._shards.pop(name, None)  # whoever asks next tries again
            raise
        self._trim()
        return [reference]

    async def sizes(self, storage: Storage, keys: Sequence[str]) -> list[int]:
        """Images of each shard, counted once for all who ask. Raises as `count_samples`."""
        names = [storage.uri(key) for key in keys]
        for name, key in zip(names, keys, strict=True):
            counted = self._counts.get(name)
            if counted is None or (counted.done() and counted.exception()):  # whoever asks next tries again
                self._counts[name] = asyncio.ensure_future(self._counted(storage, key))
        return list(await asyncio.gather(*(asyncio.shield(self._counts[name]) for name in names)))

    async def _counted(self, storage: Storage, key: str) -> int:
        async with self._counters:
            return int(await self._count.remote(storage, key))

    async def _decoded(self, storage: Storage, key: str) -> tuple[ray.ObjectRef, int]:
        async with self._slots:
            pixels, n_bytes = self._decode.remote(storage, key)
            return pixels, await n_bytes

    def _trim(self) -> None:
        known = [(name, task) for name, task in self._shards.items() if task.done() and not task.exception()]
        held = sum(task.result()[1] for _, task in known)
        for name, task in known[:-1]:
            if held <= self._budget:
                return
            held -= task.result()[1]
            del self._shards[name]


def _decode(storage: Storage, key: str) -> tuple[Pixels, int]:
    pixels = read_patiently(lambda: decode_shard(storage, key), storage.uri(key))
    return pixels, pixels.nbytes


def _count(storage: Storage, key: str) -> int:
    return read_patiently(lambda: count_samples(storage, key), storage.uri(key))


def kept_bytes() -> int:
    """Of decoded shards that the store keeps: most of the smallest node's part of the object store."""
    stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    return int(PART_OF_STORE * min(stores))


def open_images(
    store: Any, storage: Storage, shard_keys: Sequence[str], decoded_bytes: int, memory_bytes: int
) -> ImageSet:
    """The images of `shard_keys`: all in memory where their `decoded_bytes` fit, streamed otherwise.

    Args:
        store: handle of an `ImageStore`.
        memory_bytes: of decoded images that a worker uses at a time.

    Raises ClusteringError and StorageError as `ImageSet` and `decode_shard` do.
    """

    def open_shard(index: int) -> Pixels:
        pixels: Pixels = ray.get(ray.get(store.shard.remote(storage, shard_keys[index]))[0])
        return pixels

    if decoded_bytes <= memory_bytes:
        with ThreadPoolExecutor(ASKING) as threads:
            shards = list(threads.map(open_shard, range(len(shard_keys))))
        return ImageSet([len(shard) for shard in shards], shards.__getitem__)
    sizes: list[int] = ray.get(store.sizes.remote(storage, list(shard_keys)))
    image_bytes = decoded_bytes // max(1, sum(sizes))
    return ImageSet(sizes, open_shard, resident_images=max(1, memory_bytes // max(1, image_bytes)))

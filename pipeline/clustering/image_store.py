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

from pipeline.clustering.images import ImageSet, Pixels, decode_shard
from pipeline.session import run_bounded
from pipeline.shards import count_samples
from pipeline.storage import Storage

DECODING_PER_NODE = 2
"""Shards that are decoded at once, for each node: decoding must not take the CPUs from those who learn."""
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
        self._decode = ray.remote(num_returns=2, **EVERYWHERE)(_decode)
        self._slots = asyncio.Semaphore(DECODING_PER_NODE * max(1, len(ray.nodes())))

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
    pixels = decode_shard(storage, key)
    return pixels, pixels.nbytes


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
    count = ray.remote(**EVERYWHERE)(count_samples)
    counted = dict(run_bounded(lambda key: count.remote(storage, key), shard_keys))
    sizes = [counted[key] for key in shard_keys]
    image_bytes = decoded_bytes // max(1, sum(sizes))
    return ImageSet(sizes, open_shard, resident_images=max(1, memory_bytes // max(1, image_bytes)))

"""How many worker groups a cluster has room for, and what each of their workers gets."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import ClusteringConfig
from pipeline.console import say
from pipeline.errors import ClusteringError

POLL_S = 1.0
"""Time between two requests to the trial queue."""


@dataclass(frozen=True)
class GroupPlan:
    """The resources of a worker group, and how many groups work at once."""

    workers: int
    """Number of workers of a group."""
    threads: int
    """Number of CPU threads of each worker."""
    gpus: float
    """Number of GPUs of each worker; 0 to train on CPUs."""
    groups: int
    """Maximum number of groups that work at once."""

    @property
    def resources(self) -> dict[str, float]:
        """Resources of each worker, as Ray counts them."""
        return {"CPU": float(self.threads), **({"GPU": self.gpus} if self.gpus else {})}


def plan_groups(config: ClusteringConfig, trials: int) -> GroupPlan:
    """Plan as many groups as the cluster has room for, and no more than `trials`.

    A worker has `cpus_per_worker` CPUs. By default, the groups share the CPUs of a single machine, and on a cluster a
    worker has one CPU. Raises ClusteringError if not even one group fits, since it would never start.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = config.gpus_per_worker if _choose_gpu(config) else 0.0
    threads = config.cpus_per_worker or 1
    if config.cpus_per_worker is None and len(nodes) == 1 and not gpus:
        cpus = int(nodes[0].get("CPU", 1))
        threads = max(1, cpus // (config.workers * max(1, min(trials, cpus // config.workers))))
    plan = GroupPlan(config.workers, threads, gpus, 1)
    # A worker does not span nodes.
    slots = sum(min(_slots(node.get(name, 0), amount) for name, amount in plan.resources.items()) for node in nodes)
    if slots < config.workers:
        worker = " and ".join(f"{amount:g} {name}" for name, amount in plan.resources.items())
        raise ClusteringError(
            f"{config.workers} workers with {worker} each: the cluster's {len(nodes)} node(s) have room for {slots}; "
            "lower --workers or clustering.cpus_per_worker, or add nodes"
        )
    return GroupPlan(config.workers, threads, gpus, max(1, min(trials, slots // config.workers)))


def _slots(available: float, amount: float) -> int:
    """Return how many workers that need `amount` of a resource fit; a fraction of a GPU belongs to a single GPU."""
    return int(available) * int(1 / amount) if amount < 1 else int(available / amount)


def _choose_gpu(config: ClusteringConfig) -> bool:
    """Whether workers train on GPUs."""
    import ray

    if config.device != "auto":
        return config.device == "cuda"
    gpus, needed = ray.cluster_resources().get("GPU", 0), config.workers * config.gpus_per_worker
    if 0 < gpus < needed:
        say("cluster", f"{config.workers} workers need {needed:g} GPUs, but the cluster has {gpus:g}: training on CPUs")
    return bool(gpus) and gpus >= needed

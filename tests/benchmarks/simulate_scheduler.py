"""Discrete-event simulation of the trial scheduler with 10,000 collections, around the pipeline's own `TrialQueue`.

    python tests/benchmarks/simulate_scheduler.py [--gpus 8,64,512] [--json FILE]

Only the cluster is simulated. As many collections are processed at once as `run_collections` allows. Trials are taken,
begun, finished and released through `TrialQueue`. Groups of workers start and end as in `TrainingPool`, at most one
start per poll. A pool of CPU cores ingests and assigns the images of a collection, and groups with one GPU each train
its trials. Times are in seconds of simulated time. The same arguments give the same result. infra/SCALE.md shows the
last results and the sources of the costs.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script, this file can only import from its own folder

from pipeline.clustering.group_plan import POLL_S
from pipeline.clustering.training import REPORT_S
from pipeline.clustering.trial import Trial, TrialTask
from pipeline.clustering.trial_queue import TrialQueue
from pipeline.config import ClusteringConfig
from pipeline.paths import RunPaths
from pipeline.storage import LocalStorage

STEP_CORE_S = {8: (0.04, 1.62, 1.67), 16: (0.04, 1.54, 1.90), 32: (0.05, 1.68, 1.82)}
"""Core-seconds of an iteration at 128 px and batch 64, by K: without modules, with color, with color and projective.

Measured with bench_unit_costs.py --parts step.
"""
ASSIGN_CORE_S = {8: 9.2e-3, 16: 12.5e-3, 32: 19.3e-3}
"""Core-seconds to assign an image, by K. Measured with bench_unit_costs.py --parts assign."""
DECODE_CORE_S = 0.50e-3
"""Core-seconds to read an image of a shard. Measured with bench_unit_costs.py --parts load."""
INGEST_CORE_S = 262 * 3600 / 100e6
"""Core-seconds to download, decode and crop an image and to look for duplicates.

Measured with bench_ingest.py, scenario latency.
"""
DRIVER_INGEST_S, DRIVER_REPORT_S = 1 / 20_000 + 0.61 / 10_240, 0.35
"""Core-seconds of the driver, which does one thing at a time: per image for ingest, and per collection for the report.

Ingest consists of planning records (measured with bench_plan_memory.py), deduplication and accounting; the report
consists of tables, a mosaic and a tracked run (measured with bench_unit_costs.py --parts driver,track).
"""
DRIVER_TASK_S = 0.63e-3
"""Core-seconds of the driver per task. Measured with bench_unit_costs.py --parts ray."""
SHARD_IMAGES = 256
"""Number of records per task of ingest or assignment; it limits how many cores work on a collection at once."""
STAGE_ITERATIONS = (420, 1200)
"""Range of the iterations of a stage, which are drawn uniformly.

The lower bound is the shortest stage of the measured crawls; the upper bound is that of the default schedule.
"""
WINDOW, FINAL_ITERATIONS = 60, 300
"""Iterations per window, and after the last stage, in the default schedule."""
START_UP_S = (20.0, 30.0)
"""Range of the time from `TorchTrainer.fit()` to the train function. Measured: 20 to 30 s."""
GPUS_PER_NODE = 8
GPUS_OF_A_JOB = 64
"""Number of GPUs per job if a manifest is split into several jobs, each with a separate driver and cluster."""


@dataclass(frozen=True)
class Plan:
    """The simulated cluster and workload."""

    collections: int = 10_000
    """Number of collections."""
    images: int = 100_000_000
    """Number of images of all collections together."""
    size_sigma: float = 0.8
    """Standard deviation of the logarithm of a collection's size; with 10,000 images on average, nine of ten
    collections have 1,900 to 27,000."""
    k: tuple[int, ...] = (8, 16, 32)
    """Values of K per collection."""
    seeds: int = 1
    """Number of trials per K."""
    gpus: int = 64
    """Number of GPUs; each one belongs to at most one group."""
    speedup: float = 60.0
    """Speed of a GPU relative to one core of the measured machine."""
    cores_per_gpu: int = 8
    """Number of CPU cores of the cluster per GPU."""
    at_once: int = 32
    """Number of collections that are processed at once; in the pipeline twice the number of GPUs, and at least 8."""
    node_failures_per_day: float = 1 / 30
    """Mean number of failures per day of a node with 8 GPUs."""
    repair_s: float = 300.0
    """Time until a failed node is available again."""
    checkpoint_every_s: float = 60.0
    """Time between two checkpoints of a trial."""
    starts_per_poll: int = 1
    """Maximum number of groups that the driver starts per second."""
    largest_first: bool = True
    """Whether trials with the most prototypes are taken first, as in the pipeline, instead of in order of arrival."""
    reuse_groups: bool = True
    """Whether a group trains one trial after the other, as in the pipeline, instead of starting anew for every trial,
    without a delay by the driver."""
    seed: int = 0
    """Seed of all random numbers."""


@dataclass(frozen=True)
class Outcome:
    """Result of a simulation. The shares of the GPUs' time, `utilisation` to `tail`, add up to 1."""

    trials: int
    """Number of trials."""
    trained: int
    """Number of trials that were trained to the end."""
    given_up: int
    """Number of trials that were given up after too many failures."""
    makespan_s: float
    """Time from the start to the end of the last trial."""
    job_s: float
    """Time from the start to the end of the last report."""
    bound_s: float
    """Lower bound of the makespan: total training time divided by the number of GPUs, or the longest trial."""
    utilisation: float
    """Share of training that was kept, and of the final evaluation."""
    loading: float
    """Share in which groups read the images of their next collection."""
    start_up: float
    """Share in which groups started."""
    redone: float
    """Share of the work after the last checkpoint that was lost when a node failed."""
    down: float
    """Share in which GPUs were on a failed node, or reserved by a group that waited for one."""
    starved: float
    """Share without work before the last trial was taken."""
    tail: float
    """Share without work after the last trial was taken."""
    node_failures: int
    """Number of node failures."""
    group_starts: int
    """Number of groups that the driver started."""
    waiting_mean: float
    """Mean number of waiting trials."""
    waiting_most: int
    """Maximum number of waiting trials."""
    queue_calls_per_s: float
    """Number of calls per second to the queue's actor: take, begin, report, finish, add, release, update."""
    driver_load: float
    """Share of the time in which the driver works."""
    simulated_events: int
    """Number of events of the simulation."""
    seconds: float
    """Real time that the simulation took."""


class FirstComeQueue(TrialQueue):
    """Queue that hands out trials in order of arrival."""

    def rank(self, task: TrialTask) -> float:
        return 0.0


@dataclass
class _Slot:
    """A GPU and its group."""

    node: int
    """Index of the node."""
    group: str | None = None
    """Name of the group, if the GPU has one."""
    failures: int = 0
    """Number of failures of the group."""
    version: int = 0
    """Version of the state; events of an earlier version are ignored, because a failure has made them invalid."""
    collection: int = -1
    """Index of the collection whose images are loaded; -1 for none."""
    task: TrialTask | None = None
    """Trial that the group trains."""
    taken_at: float = 0.0
    """Time at which the trial was taken."""
    loaded_at: float = 0.0
    """Time at which training of the trial begins."""
    free_at: float = 0.0
    """Time at which the node is available again."""
    idle_since: float = 0.0
    """Time at which the last group ended."""


class Simulation:
    """One simulation.

    Args:
        plan: cluster and workload to simulate.
        training_s: function that returns the training time of a trial in seconds, from the index of the collection
            and the trial; by default it is derived from the measured costs.
    """

    def __init__(self, plan: Plan, training_s: Callable[[int, Trial], float] | None = None) -> None:
        self.plan = plan
        draw = np.random.default_rng(plan.seed)
        self._failures = np.random.default_rng([plan.seed, 1])
        self._start_ups = np.random.default_rng([plan.seed, 2])
        sizes = draw.lognormal(0.0, plan.size_sigma, plan.collections)
        self.sizes = np.maximum(1, np.round(sizes * plan.images / sizes.sum())).astype(int).tolist()
        config = ClusteringConfig(k=list(plan.k), seeds=plan.seeds)
        storage = LocalStorage("/workspace")
        trials = [Trial(k, seed) for k in plan.k for seed in range(plan.seeds)]
        self.tasks = [
            [TrialTask(storage, RunPaths(f"{c:06d}", "run"), config, trial, [], 0) for trial in trials]
            for c in range(plan.collections)
        ]
        low, high = STAGE_ITERATIONS
        windows = draw.integers(low // WINDOW, high // WINDOW + 1, (plan.collections, len(trials), 3)) * WINDOW
        self.training_s: dict[str, float] = {}
        """Training time of each trial."""
        self.reports: dict[str, int] = {}
        """Number of progress reports of each trial."""
        for c, tasks in enumerate(self.tasks):
            for task, iterations in zip(tasks, windows[c].tolist(), strict=True):
                seconds = training_s(c, task.trial) if training_s else self._measured_s(c, task.trial.k, iterations)
                self.training_s[task.name] = seconds
                self.reports[task.name] = (sum(iterations) + FINAL_ITERATIONS) // WINDOW + int(seconds / REPORT_S)
        self.left_s = dict(self.training_s)
        """Remaining training time of each trial, after its last checkpoint."""
        self.queue = TrialQueue() if plan.largest_first else FirstComeQueue()
        self.slots = [_Slot(i // GPUS_PER_NODE) for i in range(plan.gpus)]
        self._by_group: dict[str, _Slot] = {}
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self.now = 0.0
        self.trained: Counter[str] = Counter()
        self._unfinished = [len(tasks) for tasks in self.tasks]
        self._next_collection = self._ended = self._given_up = self._node_failures = self._starts = 0
        self._processed = self._calls = 0
        self._cpu_free_at = self._driver_free_at = self._driver_s = self._waiting_s = 0.0
        self._waiting_most = 0
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._last_take = self._last_trial = 0.0

    def run(self) -> Outcome:
        """Simulate until every collection has a report."""
        started = time.perf_counter()
        plan = self.plan
        for _ in range(min(plan.at_once, plan.collections)):
            self._ingest_next()
        self._after(POLL_S, self._poll)
        if plan.node_failures_per_day:
            for node in range(math.ceil(plan.gpus / GPUS_PER_NODE)):
                self._after(self._time_to_failure(), self._fail, node)
        while self._ended < plan.collections:
            self.now, _, event, arguments = heapq.heappop(self._events)
            self._processed += 1
            event(*arguments)
        return self._outcome(time.perf_counter() - started)

    def _measured_s(self, collection: int, k: int, iterations: Sequence[int]) -> float:
        steps = STEP_CORE_S[k]
        core_s = sum(n * step for n, step in zip(iterations, steps, strict=True)) + FINAL_ITERATIONS * steps[-1]
        return (core_s + self.sizes[collection] * ASSIGN_CORE_S[k]) / self.plan.speedup

    def _after(self, seconds: float, event: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event, arguments))

    # Collections: ingest, trials, report, as in run_collections.

    def _ingest_next(self) -> None:
        if self._next_collection < self.plan.collections:
            collection, self._next_collection = self._next_collection, self._next_collection + 1
            seconds = self.sizes[collection] * DRIVER_INGEST_S + self._shards(collection) * DRIVER_TASK_S
            self._after(self._on_driver(seconds), self._ingest, collection)

    def _ingest(self, collection: int) -> None:
        self._after(self._on_cores(collection, INGEST_CORE_S), self._add, collection)

    def _on_driver(self, seconds: float) -> float:
        """Return the time until the driver, which does one thing at a time, has finished work of `seconds`."""
        self._driver_s += seconds
        self._driver_free_at = max(self.now, self._driver_free_at) + seconds
        return self._driver_free_at - self.now

    def _shards(self, collection: int) -> int:
        return math.ceil(self.sizes[collection] / SHARD_IMAGES)

    def _on_cores(self, collection: int, core_s_per_image: float) -> float:
        """Return the time until the cores, which serve collections in order of arrival, have processed all images."""
        images, cores = self.sizes[collection], self.plan.gpus * self.plan.cores_per_gpu
        work_s = images * core_s_per_image
        self._cpu_free_at = max(self.now, self._cpu_free_at) + work_s / cores
        return max(self._cpu_free_at - self.now, work_s / min(cores, self._shards(collection)))

    def _add(self, collection: int) -> None:
        self.queue.add(self.tasks[collection])
        self._calls += 1

    def _report(self, collection: int) -> None:
        k = self.plan.k[len(self.plan.k) // 2]
        self._after(self._on_cores(collection, ASSIGN_CORE_S[k]), self._make_report, collection)

    def _make_report(self, collection: int) -> None:
        self._after(self._on_driver(DRIVER_REPORT_S + self._shards(collection) * DRIVER_TASK_S), self._end)

    def _end(self) -> None:
        self._ended += 1
        self._ingest_next()

    # The driver, as in TrainingPool._manage.

    def _poll(self) -> None:
        update = self.queue.update()
        self._calls += 1
        self._waiting_s += update.waiting * POLL_S
        self._waiting_most = max(self._waiting_most, update.waiting)
        for name, error in update.ended.items():
            self._given_up += error is not None
            self._last_trial = self.now
            collection = int(name.partition("/")[0])
            self._unfinished[collection] -= 1
            if not self._unfinished[collection]:
                self._report(collection)
        waiting, running = update.waiting, len(update.running)
        for _ in range(self.plan.starts_per_poll):
            if waiting and len(self._by_group) < min(self.plan.gpus, waiting + running):
                self._start_group()
        self._after(POLL_S, self._poll)

    def _start_group(self) -> None:
        slot = min((slot for slot in self.slots if slot.group is None), key=lambda slot: slot.free_at)
        self._starts += 1
        slot.group, slot.failures, slot.collection = f"group-{self._starts}", 0, -1
        self._by_group[slot.group] = slot
        self._start_up(slot, max(0.0, slot.free_at - self.now))

    def _start_up(self, slot: _Slot, wait_s: float = 0.0) -> None:
        seconds = float(self._start_ups.uniform(*START_UP_S))
        self._spent["start_up"] += seconds
        slot.version += 1
        self._after(wait_s + seconds, self._take, slot, slot.version)

    # A group of workers, as in train_worker.

    def _take(self, slot: _Slot, version: int) -> None:
        if version != slot.version or slot.group is None:
            return
        slot.task = self.queue.take(slot.group)
        self._calls += 1
        if slot.task is None:
            self._leave(slot)
            return
        self._last_take = self.now
        collection = int(slot.task.paths.collection)
        load_s = 0.0
        if slot.collection != collection:
            load_s = self.sizes[collection] * DECODE_CORE_S / self.plan.cores_per_gpu
            slot.collection = collection
        slot.taken_at, slot.loaded_at = self.now, self.now + load_s
        self.queue.begin(slot.group, "starts")
        self._calls += 1
        slot.version += 1
        self._after(load_s + self.left_s[slot.task.name], self._finish, slot, slot.version, load_s)

    def _finish(self, slot: _Slot, version: int, load_s: float) -> None:
        if version != slot.version or slot.group is None or slot.task is None:
            return
        name = slot.task.name
        self._spent["loading"] += load_s
        self._spent["training"] += self.left_s.pop(name)
        self.trained[name] += 1
        self.queue.finish(slot.group, 0.0, 0, 0.0)
        self._calls += 1 + self.reports[name]
        slot.task = None
        if self.plan.reuse_groups:
            self._take(slot, version)
        else:
            slot.collection = -1
            self._start_up(slot)

    def _leave(self, slot: _Slot) -> None:
        """End the group of `slot`."""
        if slot.group is not None:
            del self._by_group[slot.group]
        slot.group, slot.idle_since = None, self.now

    # Failures of nodes.

    def _time_to_failure(self) -> float:
        return float(self._failures.exponential(86400 / self.plan.node_failures_per_day))

    def _fail(self, node: int) -> None:
        self._node_failures += 1
        for slot in self.slots[node * GPUS_PER_NODE : (node + 1) * GPUS_PER_NODE]:
            slot.free_at = self.now + self.plan.repair_s
            slot.version += 1
            slot.collection = -1
            self._spent["down"] += self.plan.repair_s
            if slot.task is not None:
                trained_s = max(0.0, self.now - slot.loaded_at)
                saved_s = trained_s // self.plan.checkpoint_every_s * self.plan.checkpoint_every_s
                self.left_s[slot.task.name] -= saved_s
                self._spent["training"] += saved_s
                self._spent["redone"] += self.now - slot.taken_at - saved_s
                slot.task = None
            if slot.group is not None:
                slot.failures += 1
                if slot.failures <= ClusteringConfig().max_failures:
                    self._start_up(slot, self.plan.repair_s)
                else:  # Ray Train gives the group up, and the driver releases its trial
                    self.queue.release(slot.group)
                    self._calls += 1
                    self._leave(slot)
        self._after(self.plan.repair_s + self._time_to_failure(), self._fail, node)

    def _outcome(self, seconds: float) -> Outcome:
        gpu_s = self.plan.gpus * self._last_trial
        share = {name: self._spent[name] / gpu_s for name in ("training", "loading", "start_up", "redone", "down")}
        idle = max(0.0, 1 - sum(share.values()))
        idle_s = (self._last_trial - max(s.idle_since, self._last_take) for s in self.slots if s.group is None)
        tail = min(idle, sum(max(0.0, seconds) for seconds in idle_s) / gpu_s)
        return Outcome(
            trials=len(self.training_s),
            trained=len(self.trained),
            given_up=self._given_up,
            makespan_s=self._last_trial,
            job_s=self.now,
            bound_s=max(sum(self.training_s.values()) / self.plan.gpus, *self.training_s.values()),
            utilisation=share["training"],
            loading=share["loading"],
            start_up=share["start_up"],
            redone=share["redone"],
            down=share["down"],
            starved=idle - tail,
            tail=tail,
            node_failures=self._node_failures,
            group_starts=self._starts,
            waiting_mean=self._waiting_s / self._last_trial,
            waiting_most=self._waiting_most,
            queue_calls_per_s=self._calls / self._last_trial,
            driver_load=self._driver_s / self.now,
            simulated_events=self._processed,
            seconds=seconds,
        )


def scenarios(plan: Plan) -> dict[str, Plan]:
    """Return the plans to compare, by name, with the number of GPUs of `plan`."""
    wide = replace(plan, at_once=max(plan.at_once, 2 * plan.gpus))
    found = {
        f"one job, {plan.at_once} collections at once": plan,
        f"one job, {wide.at_once} collections at once": wide,
        "… first come, first served": replace(wide, largest_first=False),
        "… one trainer per trial": replace(wide, reuse_groups=False),
        "… a node fails every day": replace(wide, node_failures_per_day=1.0),
    }
    jobs = plan.gpus // GPUS_OF_A_JOB
    if jobs > 1:
        part = replace(plan, collections=plan.collections // jobs, images=plan.images // jobs, gpus=GPUS_OF_A_JOB)
        found[f"one of {jobs} jobs, {part.at_once} at once"] = part
        found[f"one of {jobs} jobs, {2 * part.gpus} at once"] = replace(part, at_once=2 * part.gpus)
    return found


def table_row(name: str, gpus: int, outcome: Outcome) -> str:
    """Return a row of the table in infra/SCALE.md."""
    shares = (outcome.loading, outcome.start_up, outcome.redone + outcome.down, outcome.starved, outcome.tail)
    cells = [str(gpus), name, f"{outcome.utilisation:.1%}", f"{outcome.makespan_s / 3600:.2f}"]
    cells += [f"{outcome.bound_s / outcome.makespan_s:.2f}", *(f"{share:.1%}" for share in shares)]
    cells += [f"{outcome.group_starts:,}", f"{outcome.waiting_mean:,.0f} / {outcome.waiting_most:,}"]
    return f"| {' | '.join([*cells, f'{outcome.queue_calls_per_s:,.1f}', f'{outcome.driver_load:.0%}'])} |"


HEADER = (
    "GPUs", "scheduling", "utilisation", "hours", "of the ideal", "loading", "start-up", "failures", "starved", "tail",
    "groups started", "waiting, mean / max", "calls/s", "driver",
)  # fmt: skip


def main() -> None:
    """Simulate all scenarios for every number of GPUs, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", default="8,64,512", help="numbers of GPUs (default: 8,64,512)")
    parser.add_argument(
        "--collections", type=int, default=Plan.collections, help=f"number of collections (default: {Plan.collections})"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=Plan.images,
        help=f"number of images of all collections together (default: {Plan.images})",
    )
    parser.add_argument("--k", default="8,16,32", help="values of K (default: 8,16,32)")
    parser.add_argument("--seeds", type=int, default=Plan.seeds, help=f"number of trials per K (default: {Plan.seeds})")
    parser.add_argument(
        "--at-once",
        type=int,
        default=Plan.at_once,
        help=f"number of collections that are processed at once (default: {Plan.at_once})",
    )
    parser.add_argument(
        "--speedup",
        type=float,
        default=Plan.speedup,
        help=f"speed of a GPU relative to a core (default: {Plan.speedup:g})",
    )
    parser.add_argument(
        "--cores-per-gpu",
        type=int,
        default=Plan.cores_per_gpu,
        help=f"number of CPU cores per GPU (default: {Plan.cores_per_gpu})",
    )
    parser.add_argument(
        "--starts-per-poll",
        type=int,
        default=Plan.starts_per_poll,
        help=f"maximum number of groups started per second (default: {Plan.starts_per_poll})",
    )
    parser.add_argument("--seed", type=int, default=Plan.seed, help=f"seed of the simulation (default: {Plan.seed})")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    values = {name: value for name, value in vars(arguments).items() if name not in ("gpus", "json")}
    values["k"] = tuple(int(k) for k in arguments.k.split(","))
    if unknown := sorted(set(values["k"]) - set(STEP_CORE_S)):
        parser.error(
            f"--k: the costs of K = {unknown[0]} were not measured; choose from {', '.join(map(str, STEP_CORE_S))}"
        )
    results: list[dict[str, Any]] = []
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for gpus in map(int, arguments.gpus.split(",")):
        for name, plan in scenarios(Plan(**values, gpus=gpus)).items():
            outcome = Simulation(plan).run()
            print(table_row(name, gpus, outcome), flush=True)
            results.append({"scheduling": name, "plan": asdict(plan), "outcome": asdict(outcome)})
    seconds = sum(result["outcome"]["seconds"] for result in results)
    events = sum(result["outcome"]["simulated_events"] for result in results)
    print(f"\n{events:,} events simulated in {seconds:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Limits per host: how many requests a host receives at once, and per second, from all tasks of a job together.

The limits are leased to the tasks in batches. A single HostLimiter, a Ray actor, grants slots (each allows one request
at a time) and, if there is a limit per second, starts (each allows one request). A task does not ask for every request:
at intervals it reports how many slots it holds and how many requests wait, and receives further grants. It keeps a slot
for its next request to the same host until other tasks need the slot more. Every report is complete, so the slots of a
killed task become free when it has been silent for a while, and a restarted limiter learns the state from the tasks.
"""

from __future__ import annotations

import functools
import math
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from pipeline.config import HttpConfig

LEASE_S = 20.0
"""Time after which a silent task is considered dead, and its slots become free."""

MAX_REPORT_INTERVAL_S = 1.0
"""Maximum time between two reports of a live task. Other tasks may wait this long for slots that it does not need."""

MIN_REPORT_INTERVAL_S = 0.02
"""Minimum time between two reports of a task."""

WAITING_REPORT_INTERVAL_S = 0.05
"""Maximum time between two reports of a task that waits for further slots or starts."""

MAX_HOST_PAUSE_S = 3600.0
"""Maximum pause that is granted to a host. A job that still runs afterwards sends requests again."""

MAX_REPORTS_PER_S = 500.0
"""Maximum number of reports per second of all tasks together; with more tasks, each of them reports less often."""

BURST_S = 0.2
"""Time in seconds for which unused starts are saved up, which allows short bursts; at least one start is saved."""


class Use(NamedTuple):
    """The report of a task about one host."""

    slots: int = 0
    """Number of slots that the task holds."""
    running: int = 0
    """Number of these slots that are in use."""
    waiting: int = 0
    """Number of requests that wait for a slot or a start."""
    starts: int = 0
    """Number of starts that the task holds; always 0 without a limit per second."""
    pause_s: float = 0.0
    """Seconds for which the host asked to receive no requests."""

    @property
    def lacking(self) -> int:
        """Number of slots that the task needs beyond those that it holds."""
        return max(0, self.waiting - (self.slots - self.running))


class Grant(NamedTuple):
    """The grant to a task for one host."""

    slots: int = 0
    """Number of additional slots."""
    keep: int = 0
    """Maximum number of slots to keep; others are given back as their requests finish, for tasks that have fewer."""
    starts: int = 0
    """Number of additional starts."""
    pause_s: float = 0.0
    """Seconds for which no request may start."""


class Answer(NamedTuple):
    """The answer of the limiter to one report."""

    grants: dict[str, Grant]
    """Grants by host."""
    pause_s: float
    """Minimum time in seconds before the next report."""


Exchange = Callable[[str, dict[str, Use]], Answer]
"""Function that sends the id of a task and its report to the limiter, and returns the answer. The report has the use by
host; the task does not use other hosts."""


@dataclass
class _Host:
    """The state of one host."""

    starts: float
    """Number of starts that can be granted now."""
    refilled_at: float
    blocked_until: float = 0.0
    uses: dict[str, Use] = field(default_factory=dict)
    """Latest report of each task."""


class HostLimiter:
    """Divides the requests that each host may receive among the tasks.

    It is safe to use from several threads; as a Ray actor, it needs only one.
    """

    def __init__(
        self, config: HttpConfig, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lease_s = lease_s
        self._limit = config.requests_per_host
        self._rate = config.requests_per_second_per_host
        self._max_starts = max(1.0, (self._rate or 0.0) * BURST_S)
        self._clock = clock
        self._hosts: dict[str, _Host] = {}
        self._tasks: dict[str, tuple[float, set[str]]] = {}
        self._swept_at = clock()
        self._lock = threading.Lock()

    def exchange(self, task: str, uses: dict[str, Use]) -> Answer:
        """Record the report `uses` (by host) of `task`, and grant free slots. An empty report ends its lease."""
        with self._lock:
            now = self._clock()
            if now - self._swept_at > 1.0:
                self._expire_leases(now)
            for host in self._tasks.get(task, (now, set()))[1] - uses.keys():
                self._release(host, task)
            if uses:
                self._tasks[task] = (now, set(uses))
            else:
                self._tasks.pop(task, None)
            grants = {host: self._grant(host, task, use, now) for host, use in uses.items()}
            return Answer(grants, max(MIN_REPORT_INTERVAL_S, len(self._tasks) / MAX_REPORTS_PER_S))

    def slots_in_use(self) -> dict[str, int]:
        """Number of slots that tasks hold now, by host; hosts without any are left out."""
        with self._lock:
            self._expire_leases(self._clock())
            held = {name: sum(use.slots for use in host.uses.values()) for name, host in self._hosts.items()}
            return {name: slots for name, slots in held.items() if slots}

    def _grant(self, name: str, task: str, use: Use, now: float) -> Grant:
        """Record `use` of the host `name` by `task`, and grant it the free slots that tasks with fewer do not need."""
        host = self._hosts.setdefault(name, _Host(self._max_starts, now))
        if use.pause_s > 0:
            host.blocked_until = max(host.blocked_until, now + min(use.pause_s, MAX_HOST_PAUSE_S))
        host.uses[task] = use
        others = [other for key, other in host.uses.items() if key != task]
        share = -(-self._limit // (len(others) + 1))
        free = max(0, self._limit - sum(other.slots for other in host.uses.values()))
        lacking = sum(max(0, min(share - other.slots, other.lacking)) for other in others)
        slots = max(0, min(use.lacking, free, max(share - use.slots, free - lacking)))
        starts = 0
        if self._rate is not None:
            earned = (now - host.refilled_at) * self._rate
            host.starts, host.refilled_at = min(self._max_starts, host.starts + earned), now
            if host.blocked_until <= now:
                starts = min(math.floor(host.starts), max(0, use.waiting - use.starts), use.slots + slots)
                host.starts -= starts
        host.uses[task] = use._replace(slots=use.slots + slots)
        keep = share if lacking > free - slots else self._limit
        return Grant(slots, keep, starts, max(0.0, host.blocked_until - now))

    def _expire_leases(self, now: float) -> None:
        """Free the slots of tasks that have been silent for too long, and drop hosts that are not used."""
        self._swept_at = now
        for task in [task for task, (reported_at, _) in self._tasks.items() if now - reported_at > self._lease_s]:
            for host in self._tasks.pop(task)[1]:
                self._release(host, task)
        idle = [
            name
            for name, host in self._hosts.items()
            if not host.uses and host.blocked_until <= now and now - host.refilled_at > 1.0
        ]
        for name in idle:
            del self._hosts[name]

    def _release(self, name: str, task: str) -> None:
        if (host := self._hosts.get(name)) is not None:
            host.uses.pop(task, None)


class HostSlots:
    """The slots of one task: decides immediately whether a request may start, and reports to the limiter by a thread.

    Use it as a context manager, and call its methods from one thread only.

    Args:
        exchange: method `exchange` of the HostLimiter, or a function that calls it.
        config: limits per host, equal to those of the limiter.
        changed: function that is called from another thread when more requests may start, or when pauses have changed.
    """

    def __init__(self, exchange: Exchange, config: HttpConfig, changed: Callable[[], None]) -> None:
        self._exchange = exchange
        self._limit = config.requests_per_host
        self._has_rate = config.requests_per_second_per_host is not None
        self._changed = changed
        self._task = uuid.uuid4().hex
        self._slots: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self._starts: Counter[str] = Counter()
        self._waiting: Mapping[str, int] = {}
        self._keep: dict[str, int] = {}
        self._paused_until: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        self._lock = threading.Lock()
        self._report_due = threading.Event()
        self._closing = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._report_regularly, name="host-slots", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._report_due.set()
        self._thread.join(2.0)

    def want(self, waiting: Mapping[str, int]) -> None:
        """Set the number of waiting requests by host. Raises the error of a failed exchange with the limiter."""
        if self._error is not None:
            raise self._error
        with self._lock:
            if waiting != self._waiting:
                more = any(n > self._waiting.get(host, 0) for host, n in waiting.items())
                self._waiting = dict(waiting)
                if more:
                    self._report_due.set()

    def take(self, host: str) -> bool:
        """Return whether a request to `host` may start now; if so, it occupies a slot until `give_back`."""
        with self._lock:
            if self._running[host] >= self._slots[host] or self._paused_until.get(host, 0.0) > time.monotonic():
                return False
            if self._has_rate:
                if self._starts[host] < 1:
                    return False
                self._starts[host] -= 1
            self._running[host] += 1
            return True

    def give_back(self, host: str) -> None:
        """Release the slot of a finished request, for the next request to `host` or for another task."""
        with self._lock:
            self._running[host] -= 1
            self._drop_spare(host)

    def pause(self, host: str, seconds: float) -> None:
        """Let no task start a request to `host` for this many seconds."""
        with self._lock:
            self._pauses[host] = max(self._pauses.get(host, 0.0), seconds)
            self._paused_until[host] = max(self._paused_until.get(host, 0.0), time.monotonic() + seconds)
            self._report_due.set()

    def pauses(self) -> dict[str, float]:
        """Remaining seconds of the pauses of hosts, as far as this task knows."""
        with self._lock:
            now = time.monotonic()
            return {host: end - now for host, end in self._paused_until.items() if end > now}

    def pause_ends(self) -> list[float]:
        """Ends of the pauses of hosts that requests wait for, in the time of `time.monotonic`."""
        with self._lock:
            now = time.monotonic()
            ends = (self._paused_until.get(host, 0.0) for host in self._waiting)
            return [end for end in ends if end > now]

    def _drop_spare(self, host: str) -> None:
        """Give up the unused slots of `host` that no request waits for, or that other tasks need more."""
        keep = min(self._keep.get(host, 0), self._running[host] + self._waiting.get(host, 0))
        if self._slots[host] > max(keep, self._running[host]):
            self._slots[host] = max(keep, self._running[host])
            self._starts[host] = min(self._starts[host], self._slots[host])
            if self._keep.get(host, 0) < self._limit:  # another task waits for the slot
                self._report_due.set()

    def _next_report(self) -> dict[str, Use]:
        """Return the next report, after giving up slots that no request waits for."""
        for host in [host for host, slots in self._slots.items() if slots > self._running[host]]:
            self._drop_spare(host)
        hosts = {host for host, slots in self._slots.items() if slots} | self._waiting.keys() | self._pauses.keys()
        uses = {}
        for host in hosts:
            waiting, pause_s = self._waiting.get(host, 0), self._pauses.get(host, 0.0)
            uses[host] = Use(self._slots[host], self._running[host], waiting, self._starts[host], pause_s)
        self._pauses = {}
        return uses

    def _apply_grants(self, grants: dict[str, Grant]) -> bool:
        """Apply `grants`; return whether they change which requests may start, or when."""
        more = False
        for host, grant in grants.items():
            self._slots[host] += grant.slots
            self._starts[host] += grant.starts
            self._keep[host] = grant.keep
            if grant.pause_s > 0:
                self._paused_until[host] = time.monotonic() + grant.pause_s
            more |= grant.slots > 0 or grant.starts > 0 or grant.pause_s > 0
        for counts in (self._slots, self._running, self._starts):
            for host in [host for host, n in counts.items() if not n and host not in grants]:
                del counts[host]
        return more

    def _report_regularly(self) -> None:
        """Exchange reports for grants until the task is done; then end its lease."""
        try:
            while not self._closing.is_set():
                self._report_due.clear()
                with self._lock:
                    uses = self._next_report()
                answer = self._exchange(self._task, uses)
                with self._lock:
                    more = self._apply_grants(answer.grants)
                    short = any(not self._may_all_start(host, n) for host, n in self._waiting.items())
                if more:
                    self._changed()
                self._closing.wait(answer.pause_s)
                self._report_due.wait(WAITING_REPORT_INTERVAL_S if short else MAX_REPORT_INTERVAL_S)
            with self._lock:
                pauses = {host: Use(pause_s=seconds) for host, seconds in self._pauses.items()}
            if pauses:  # these pauses were not reported yet, and other tasks must observe them
                self._exchange(self._task, pauses)
            self._exchange(self._task, {})
        except BaseException as error:
            self._error = error
            self._changed()

    def _may_all_start(self, host: str, waiting: int) -> bool:
        """Whether the slots and starts of `host` suffice for its `waiting` requests."""
        spare = self._slots[host] - self._running[host]
        return spare >= waiting and (not self._has_rate or self._starts[host] >= waiting)


def local_limits(config: HttpConfig) -> Exchange:
    """Return access to a new limiter in this process, so that the limits hold for its users only."""
    return HostLimiter(config).exchange


def start_limiter(config: HttpConfig, lease_s: float = LEASE_S) -> Any:
    """Start a HostLimiter as an actor of this job, and return its handle for `limits_of`. Needs a Ray session.

    Collections that one job ingests at the same time with the same limits share one limiter. Every job has its own,
    so two jobs at the same time may send twice as many requests to a host.
    """
    import ray

    session = ray.get_runtime_context().get_node_id() + ray.get_runtime_context().get_job_id()
    with _limiter_lock:
        return _limiter(session, config.requests_per_host, config.requests_per_second_per_host, lease_s)


_limiter_lock = threading.Lock()


@functools.lru_cache(maxsize=16)
def _limiter(session: str, requests: int, rate: float | None, lease_s: float) -> Any:
    import ray

    # The actor computes very little, so it reserves no CPU.
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(HostLimiter)
    return actor.remote(HttpConfig(requests_per_host=requests, requests_per_second_per_host=rate), lease_s)


def limits_of(limiter: Any) -> Exchange:
    """Return access to the actor `limiter` that `start_limiter` returned."""
    import ray

    def exchange(task: str, uses: dict[str, Use]) -> Answer:
        answer: Answer = ray.get(limiter.exchange.remote(task, uses))
        return answer

    return exchange

"""How many requests a host gets at once, and per second, from all tasks of a job together.

One HostLimiter decides, as a Ray actor. It hands out slots (one request at a time each) and, where a rate is set,
starts (one request each). A task does not ask for every request: now and then it says which slots it holds and how
many requests wait, and learns what it may use. It keeps a slot for its next request to the same host until others
need it more. What a task states is complete each time, so slots of a task that is killed come back when it has been
silent for a while, and a limiter that is restarted learns the state from its tasks.
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
"""A task that is silent for this long is taken for dead."""

HEARTBEAT_S = 1.0
"""Longest silence of a task that lives: so long may others have to wait for what it does not need."""

SHORTEST_PAUSE_S = 0.02
"""Between two statements of a task."""

SHORT_PAUSE_S = 0.05
"""Between two statements of a task that waits for more."""

LONGEST_PAUSE_S = 3600.0
"""A host that asks to be left alone for longer is asked again by a job that still runs then."""

EXCHANGES_PER_S = 500.0
"""Statements that all tasks together make per second at most; more tasks make them less often."""

BURST_S = 0.2
"""Unused starts of this many seconds are kept for later; at least one is."""


class Use(NamedTuple):
    """What a task states about one host."""

    slots: int = 0
    """That it holds."""
    running: int = 0
    """Of these, the ones in use."""
    waiting: int = 0
    """Requests that would start if they might."""
    starts: int = 0
    """That it holds; always 0 without a rate."""
    pause_s: float = 0.0
    """The host asked to be left alone for this long."""

    @property
    def lacking(self) -> int:
        """Slots that it would use beyond those it holds."""
        return max(0, self.waiting - (self.slots - self.running))


class Grant(NamedTuple):
    """What a task may do at one host, from now on."""

    slots: int = 0
    """More than it had."""
    keep: int = 0
    """Slots above this number are to be given back when their requests end: other tasks have fewer."""
    starts: int = 0
    """More than it had."""
    pause_s: float = 0.0
    """No request may start for this long."""


class Answer(NamedTuple):
    """What a task learns from one statement."""

    grants: dict[str, Grant]
    pause_s: float
    """Before the next statement."""


Exchange = Callable[[str, dict[str, Use]], Answer]
"""States what the task of that name uses at each host (those not named: nothing), and learns what it may."""


@dataclass
class _Host:
    starts: float
    refilled_at: float
    blocked_until: float = 0.0
    uses: dict[str, Use] = field(default_factory=dict)


class HostLimiter:
    """Divides the requests that hosts get among the tasks that want to make them.

    Several threads may use it; as an actor it needs one.
    """

    def __init__(
        self, config: HttpConfig, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lease_s = lease_s
        self._limit = config.requests_per_host
        self._rate = config.requests_per_second_per_host
        self._most_starts = max(1.0, (self._rate or 0.0) * BURST_S)
        self._clock = clock
        self._hosts: dict[str, _Host] = {}
        self._tasks: dict[str, tuple[float, set[str]]] = {}
        self._swept_at = clock()
        self._lock = threading.Lock()

    def exchange(self, task: str, uses: dict[str, Use]) -> Answer:
        """Take note that `task` uses no more than `uses`, and grant what is free; no hosts end its lease."""
        with self._lock:
            now = self._clock()
            if now - self._swept_at > 1.0:
                self._forget_the_silent(now)
            for host in self._tasks.get(task, (now, set()))[1] - uses.keys():
                self._leave(host, task)
            if uses:
                self._tasks[task] = (now, set(uses))
            else:
                self._tasks.pop(task, None)
            grants = {host: self._grant(host, task, use, now) for host, use in uses.items()}
            return Answer(grants, max(SHORTEST_PAUSE_S, len(self._tasks) / EXCHANGES_PER_S))

    def slots_in_use(self) -> dict[str, int]:
        """Slots that tasks hold now, by host; hosts without any are left out."""
        with self._lock:
            self._forget_the_silent(self._clock())
            held = {name: sum(use.slots for use in host.uses.values()) for name, host in self._hosts.items()}
            return {name: slots for name, slots in held.items() if slots}

    def _grant(self, name: str, task: str, use: Use, now: float) -> Grant:
        host = self._hosts.setdefault(name, _Host(self._most_starts, now))
        if use.pause_s > 0:
            host.blocked_until = max(host.blocked_until, now + min(use.pause_s, LONGEST_PAUSE_S))
        host.uses[task] = use
        others = [other for key, other in host.uses.items() if key != task]
        share = -(-self._limit // (len(others) + 1))
        free = max(0, self._limit - sum(other.slots for other in host.uses.values()))
        lacking = sum(max(0, min(share - other.slots, other.lacking)) for other in others)
        slots = max(0, min(use.lacking, free, max(share - use.slots, free - lacking)))
        starts = 0
        if self._rate is not None:
            earned = (now - host.refilled_at) * self._rate
            host.starts, host.refilled_at = min(self._most_starts, host.starts + earned), now
            if host.blocked_until <= now:
                starts = min(math.floor(host.starts), max(0, use.waiting - use.starts), use.slots + slots)
                host.starts -= starts
        host.uses[task] = use._replace(slots=use.slots + slots)
        keep = share if lacking > free - slots else self._limit
        return Grant(slots, keep, starts, max(0.0, host.blocked_until - now))

    def _forget_the_silent(self, now: float) -> None:
        self._swept_at = now
        for task in [task for task, (heard, _) in self._tasks.items() if now - heard > self._lease_s]:
            for host in self._tasks.pop(task)[1]:
                self._leave(host, task)
        idle = [
            name
            for name, host in self._hosts.items()
            if not host.uses and host.blocked_until <= now and now - host.refilled_at > 1.0
        ]
        for name in idle:
            del self._hosts[name]

    def _leave(self, name: str, task: str) -> None:
        if (host := self._hosts.get(name)) is not None:
            host.uses.pop(task, None)


class HostSlots:
    """A task's side of the limits: says at once whether a request may start, and keeps in touch with the limiter.

    Use it as a context manager; its methods belong to one thread.

    Args:
        exchange: of the HostLimiter, or of what leads to it.
        changed: called from another thread when more requests may start, or at another time.
    """

    def __init__(self, exchange: Exchange, config: HttpConfig, changed: Callable[[], None]) -> None:
        self._exchange = exchange
        self._most = config.requests_per_host
        self._rated = config.requests_per_second_per_host is not None
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
        self._stated = threading.Event()
        self._closing = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._keep_in_touch, name="host-slots", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._stated.set()
        self._thread.join(2.0)

    def want(self, waiting: Mapping[str, int]) -> None:
        """State how many requests wait for each host. Raises what the limiter failed with."""
        if self._error is not None:
            raise self._error
        with self._lock:
            if waiting != self._waiting:
                more = any(n > self._waiting.get(host, 0) for host, n in waiting.items())
                self._waiting = dict(waiting)
                if more:
                    self._stated.set()

    def take(self, host: str) -> bool:
        """Whether a request to `host` may start now; it counts until `give_back`."""
        with self._lock:
            if self._running[host] >= self._slots[host] or self._paused_until.get(host, 0.0) > time.monotonic():
                return False
            if self._rated:
                if self._starts[host] < 1:
                    return False
                self._starts[host] -= 1
            self._running[host] += 1
            return True

    def give_back(self, host: str) -> None:
        """The request ended; its slot serves the next one to the same host, or goes to another task."""
        with self._lock:
            self._running[host] -= 1
            self._drop_spare(host)

    def pause(self, host: str, seconds: float) -> None:
        """No request of any task may start at `host` for so long."""
        with self._lock:
            self._pauses[host] = max(self._pauses.get(host, 0.0), seconds)
            self._paused_until[host] = max(self._paused_until.get(host, 0.0), time.monotonic() + seconds)
            self._stated.set()

    def pauses(self) -> dict[str, float]:
        """Seconds that hosts are to be left alone, as far as this task knows."""
        with self._lock:
            now = time.monotonic()
            return {host: end - now for host, end in self._paused_until.items() if end > now}

    def pause_ends(self) -> list[float]:
        """When hosts that requests wait for may be asked again, in the time of `time.monotonic`."""
        with self._lock:
            now = time.monotonic()
            ends = (self._paused_until.get(host, 0.0) for host in self._waiting)
            return [end for end in ends if end > now]

    def _drop_spare(self, host: str) -> None:
        keep = min(self._keep.get(host, 0), self._running[host] + self._waiting.get(host, 0))
        if self._slots[host] > max(keep, self._running[host]):
            self._slots[host] = max(keep, self._running[host])
            self._starts[host] = min(self._starts[host], self._slots[host])
            if self._keep.get(host, 0) < self._most:  # somebody waits for it
                self._stated.set()

    def _state(self) -> dict[str, Use]:
        """What is stated next: the slots that nothing waits for are given back first."""
        for host in [host for host, slots in self._slots.items() if slots > self._running[host]]:
            self._drop_spare(host)
        hosts = {host for host, slots in self._slots.items() if slots} | self._waiting.keys() | self._pauses.keys()
        uses = {}
        for host in hosts:
            waiting, pause_s = self._waiting.get(host, 0), self._pauses.get(host, 0.0)
            uses[host] = Use(self._slots[host], self._running[host], waiting, self._starts[host], pause_s)
        self._pauses = {}
        return uses

    def _learn(self, grants: dict[str, Grant]) -> bool:
        """Take note of `grants`; whether they change what may start, or when."""
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

    def _keep_in_touch(self) -> None:
        try:
            while not self._closing.is_set():
                self._stated.clear()
                with self._lock:
                    uses = self._state()
                answer = self._exchange(self._task, uses)
                with self._lock:
                    more = self._learn(answer.grants)
                    short = any(not self._may_all_start(host, n) for host, n in self._waiting.items())
                if more:
                    self._changed()
                self._closing.wait(answer.pause_s)
                self._stated.wait(SHORT_PAUSE_S if short else HEARTBEAT_S)
            with self._lock:
                pauses = {host: Use(pause_s=seconds) for host, seconds in self._pauses.items()}
            if pauses:  # what this task was told last holds for the others, too
                self._exchange(self._task, pauses)
            self._exchange(self._task, {})
        except BaseException as error:
            self._error = error
            self._changed()

    def _may_all_start(self, host: str, waiting: int) -> bool:
        spare = self._slots[host] - self._running[host]
        return spare >= waiting and (not self._rated or self._starts[host] >= waiting)


def local_limits(config: HttpConfig) -> Exchange:
    """Limits within this process alone."""
    return HostLimiter(config).exchange


def start_limiter(config: HttpConfig, lease_s: float = LEASE_S) -> Any:
    """A HostLimiter as an actor of this job: its handle goes to `limits_of`, in any task. Needs a Ray session.

    Collections of one job that are ingested at the same time, with the same limits, share one. Each job has its own:
    two jobs at once give a host twice as many requests.
    """
    import ray

    session = ray.get_runtime_context().get_node_id() + ray.get_runtime_context().get_job_id()
    with _starting:
        return _limiter(session, config.requests_per_host, config.requests_per_second_per_host, lease_s)


_starting = threading.Lock()


@functools.lru_cache(maxsize=16)
def _limiter(session: str, requests: int, rate: float | None, lease_s: float) -> Any:
    import ray

    # It computes next to nothing; tasks keep their CPUs.
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(HostLimiter)
    return actor.remote(HttpConfig(requests_per_host=requests, requests_per_second_per_host=rate), lease_s)


def limits_of(limiter: Any) -> Exchange:
    """The limits of the actor that `start_limiter` made."""
    import ray

    def exchange(task: str, uses: dict[str, Use]) -> Answer:
        answer: Answer = ray.get(limiter.exchange.remote(task, uses))
        return answer

    return exchange

"""The addresses of one task to their bytes: many at once, within the limits of their hosts, tried again where it helps.

Records come out as their downloads end, so that decoding never waits for a slow server. No more downloads start than
there are threads, ended ones that nobody has taken included: that bounds memory.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import random
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import IO
from urllib.parse import urlsplit

from pipeline.config import HttpConfig
from pipeline.ingest.download.host_limits import Exchange, HostSlots
from pipeline.ingest.download.request import HttpClient, Redirect, host_of
from pipeline.ingest.rejection import Rejected, TemporaryFailure

FIRST_PAUSE_S = 0.5
"""Before the second attempt, at most; twice as much before each further one."""

GIVEN_UP_AFTER, GIVEN_UP_AFTER_S = 16, 10.0
"""Failures of one host in a row, in one task, and the seconds that they must have lasted, after which its other records
wait for the next round unasked: a short fault of a host with many requests under way is not the end of it."""

PREFETCH = 4
"""Requests for whose hosts there is asked before a thread is free."""


@dataclass(frozen=True)
class _Job:
    """One record on its way."""

    key: int
    address: str
    """Of the record."""
    url: str
    """Where a redirect has led."""
    seconds: float
    """Left of this attempt."""
    host: str
    """Of `url`."""
    redirects: int = 0
    failures: int = 0


_Outcome = tuple[_Job, "Future[IO[bytes] | Redirect]", float]


def is_url(address: str) -> bool:
    """Whether `address` is one to download from."""
    return address[:8].lower().startswith(("http://", "https://"))


def download(
    addresses: Mapping[int, str], max_bytes: int, config: HttpConfig, limits: Exchange
) -> Iterator[tuple[int, bytes | Rejected]]:
    """Download `addresses` and yield each key once, with the content or why there is none, as they are done.

    An address whose fault may pass is tried again, after a random pause that grows, or when its server asks for it:
    up to `config.attempts` times, and then Rejected as unreachable; so is what waits for a host that keeps failing.

    Raises StorageError where this machine is at fault.
    """
    client = HttpClient(config, max_bytes)
    try:
        yield from _Downloads(addresses, client, config).run(limits)
    finally:
        client.close()


class _Downloads:
    def __init__(self, addresses: Mapping[int, str], client: HttpClient, config: HttpConfig) -> None:
        self._client = client
        self._config = config
        self._order = itertools.count()
        # By host, each with its turn: records are asked for in order, as far as their hosts allow.
        self._ready: dict[str, deque[tuple[int, _Job]]] = {}
        for key, url in addresses.items():
            self._put_last(_Job(key, url, url, config.deadline_s, host_of(url)))
        self._later: list[tuple[float, int, _Job]] = []
        self._failures_in_a_row: Counter[str] = Counter()
        self._failing_since: dict[str, float] = {}
        self._given_up: dict[str, Rejected] = {}
        self._running = 0
        # An item of None: more requests may start.
        self._ended: queue.SimpleQueue[_Outcome | None] = queue.SimpleQueue()

    def run(self, limits: Exchange) -> Iterator[tuple[int, bytes | Rejected]]:
        pool = ThreadPoolExecutor(self._config.threads, "download")
        try:
            with HostSlots(limits, self._config, lambda: self._ended.put(None)) as slots:
                while self._ready or self._later or self._running:
                    self._start(pool, slots)
                    self._leave_alone(slots)
                    yield from self._unasked()
                    outcome = self._next_outcome(slots)
                    if outcome is None:
                        continue
                    job, future, seconds = outcome
                    self._running -= 1
                    slots.give_back(job.host)
                    result = self._judge(job, future, seconds, slots)
                    # A thread that is free now works while the caller decodes.
                    self._start(pool, slots)
                    if result is not None:
                        yield job.key, result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, slots: HostSlots) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._put_last(heapq.heappop(self._later)[2])
        hosts = [(jobs[0][0], host) for host, jobs in self._ready.items()]
        heapq.heapify(hosts)
        refused = 0
        while hosts and self._running < self._config.threads:
            _, host = heapq.heappop(hosts)
            if not slots.take(host):
                refused += 1
                continue
            jobs = self._ready[host]
            self._submit(pool, jobs.popleft()[1])
            if jobs:
                heapq.heappush(hosts, (jobs[0][0], host))
            else:
                del self._ready[host]
        # Each host counts as often as threads are free for it: a host that is slow to grant does not hide the others.
        free = self._config.threads - self._running + PREFETCH
        waiting = heapq.nsmallest(free + refused, self._ready, key=lambda host: self._ready[host][0][0])
        slots.want({host: min(len(self._ready[host]), free) for host in waiting})

    def _submit(self, pool: ThreadPoolExecutor, job: _Job) -> None:
        self._running += 1
        begun = time.monotonic()
        future = pool.submit(self._client.get, job.url, job.seconds)
        future.add_done_callback(partial(self._end, job, begun))

    def _put_last(self, job: _Job) -> None:
        self._ready.setdefault(job.host, deque()).append((next(self._order), job))

    def _leave_alone(self, slots: HostSlots) -> None:
        """Give up the hosts that asked, whichever task, to be left alone for longer than this one waits."""
        for host, seconds in slots.pauses().items():
            if seconds > self._config.max_wait_s and host not in self._given_up:
                detail = f"the host asks to be left alone for {seconds:.0f} s"
                self._given_up[host] = Rejected("unreachable", detail)

    def _unasked(self) -> Iterator[tuple[int, Rejected]]:
        """The records that wait for hosts that were given up."""
        if self._given_up:
            ready = (self._ready.pop(host, ()) for host in self._given_up)
            waiting = [job for _, job in itertools.chain.from_iterable(ready)]
            waiting += [job for _, _, job in self._later]
            self._later = [entry for entry in self._later if entry[2].host not in self._given_up]
            heapq.heapify(self._later)
            for job in waiting:
                if job.host in self._given_up:
                    yield job.key, _after_redirects(self._given_up[job.host], job)

    def _end(self, job: _Job, begun: float, future: Future[IO[bytes] | Redirect]) -> None:
        if not future.cancelled():
            self._ended.put((job, future, time.monotonic() - begun))

    def _next_outcome(self, slots: HostSlots) -> _Outcome | None:
        """The next download that ends; None where others may start first."""
        due = min([*slots.pause_ends(), *(due for due, _, _ in self._later[:1])], default=None)
        try:
            return self._ended.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
        except queue.Empty:
            return None

    def _judge(
        self, job: _Job, future: Future[IO[bytes] | Redirect], seconds: float, slots: HostSlots
    ) -> bytes | Rejected | None:
        """What has become of `job`; None where it goes on."""
        try:
            answer = future.result()
            self._failures_in_a_row.pop(job.host, None)
            if isinstance(answer, Redirect):
                redirected = self._redirected(job, answer.url, seconds)
                self._ready.setdefault(redirected.host, deque()).appendleft((-1, redirected))  # before all others
                return None
            with answer:
                return answer.read()
        except Rejected as rejected:
            self._failures_in_a_row.pop(job.host, None)
            return _after_redirects(rejected, job)
        except TemporaryFailure as failure:
            return self._again(job, failure, slots)

    def _redirected(self, job: _Job, url: str, seconds: float) -> _Job:
        if job.redirects == self._config.max_redirects:
            raise Rejected("too_many_redirects", f"more than {self._config.max_redirects}")
        return replace(job, url=url, host=host_of(url), redirects=job.redirects + 1, seconds=job.seconds - seconds)

    def _again(self, job: _Job, failure: TemporaryFailure, slots: HostSlots) -> Rejected | None:
        """Put `job` off, or give it up for this round."""
        host = job.host
        now = time.monotonic()
        if not self._failures_in_a_row[host]:
            self._failing_since[host] = now
        self._failures_in_a_row[host] += 1
        longest = min(self._config.max_wait_s, FIRST_PAUSE_S * 2.0**job.failures)
        pause = random.uniform(0.0, longest)
        if failure.retry_after_s is not None:
            pause += failure.retry_after_s  # jitter on top: everybody was told the same moment
        failures = job.failures + 1
        too_long = failure.retry_after_s is not None and failure.retry_after_s > self._config.max_wait_s
        if failure.host_is_busy:
            slots.pause(host, max(pause, longest))
        bursts, rest = divmod(self._failures_in_a_row[host], GIVEN_UP_AFTER)
        if bursts and not rest:
            slots.pause(host, min(self._config.max_wait_s, FIRST_PAUSE_S * 2.0**bursts))
        lasting = now - self._failing_since[host] >= GIVEN_UP_AFTER_S
        if bursts and lasting:
            self._given_up[host] = Rejected("unreachable", f"{failure.detail} (of another record of this host)")
        if failures >= self._config.attempts or too_long or host in self._given_up:
            tried = f"{failures} attempt{'s' if failures > 1 else ''}"
            return _after_redirects(Rejected("unreachable", f"{failure.detail} ({tried})"), job)
        fresh = _Job(
            job.key, job.address, job.address, self._config.deadline_s, host_of(job.address), failures=failures
        )
        heapq.heappush(self._later, (time.monotonic() + pause, next(self._order), fresh))
        return None


def _after_redirects(rejected: Rejected, job: _Job) -> Rejected:
    if not job.redirects:
        return rejected
    place = host_of(job.url) or urlsplit(job.url).scheme
    return Rejected(rejected.reason, f"{rejected.detail}, redirected to {place}")

"""Downloads the records of one task: many at once, within the limits per host, with retries of temporary failures.

Records are returned as their downloads finish, so that decoding never waits for a slow server. Running downloads and
finished ones that the caller has not taken yet are together at most as many as the threads, which limits memory.
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
from pipeline.ingest.download.request import HttpClient, Redirect
from pipeline.ingest.download.urls import host_of
from pipeline.ingest.rejection import Rejected, TemporaryFailure

FIRST_PAUSE_S = 0.5
"""Maximum pause before the second attempt; it doubles with each further attempt."""

GIVEN_UP_AFTER, GIVEN_UP_AFTER_S = 16, 10.0
"""Number of consecutive failures of one host in one task, and seconds that they must have lasted, after which the task
gives up the host: its other records become unreachable without an attempt, and wait for the next round. The minimum
duration keeps a short fault of a host with many parallel requests from having this effect."""

PREFETCH = 4
"""Number of requests for which slots are requested before a thread is free."""


@dataclass(frozen=True)
class _Job:
    """The download of one record."""

    key: int
    address: str
    """Address of the record."""
    url: str
    """URL of the next request: the address, or the target of a redirect."""
    seconds: float
    """Seconds that are left for this attempt."""
    host: str
    """Host of `url`."""
    redirects: int = 0
    """Number of redirects that were followed in this attempt."""
    failures: int = 0
    """Number of attempts that failed."""


_Outcome = tuple[_Job, "Future[IO[bytes] | Redirect]", float]
"""A request that has finished, and the seconds that it took."""


def download(
    addresses: Mapping[int, str], max_bytes: int, config: HttpConfig, limits: Exchange
) -> Iterator[tuple[int, bytes | Rejected]]:
    """Download `addresses`; yield each key once, with the content or the reason for a rejection, as downloads finish.

    After a temporary failure, an address is tried again after a growing random pause, or after the time that its server
    requests, up to `config.attempts` times in all. It is then Rejected as unreachable, like all records that wait for a
    host that keeps failing.

    Raises StorageError if this machine is at fault.
    """
    client = HttpClient(config, max_bytes)
    try:
        yield from _Downloads(addresses, client, config).run(limits)
    finally:
        client.close()


class _Downloads:
    """The state of all downloads of one task."""

    def __init__(self, addresses: Mapping[int, str], client: HttpClient, config: HttpConfig) -> None:
        self._client = client
        self._config = config
        self._order = itertools.count()
        # Jobs by host, each with its number in the order of starting, from which only the limits of hosts deviate.
        self._ready: dict[str, deque[tuple[int, _Job]]] = {}
        for key, url in addresses.items():
            self._enqueue(_Job(key, url, url, config.deadline_s, host_of(url)))
        self._delayed: list[tuple[float, int, _Job]] = []
        self._failures_in_a_row: Counter[str] = Counter()
        self._failing_since: dict[str, float] = {}
        self._given_up: dict[str, Rejected] = {}
        self._running = 0
        # None means that more requests may start.
        self._finished: queue.SimpleQueue[_Outcome | None] = queue.SimpleQueue()

    def run(self, limits: Exchange) -> Iterator[tuple[int, bytes | Rejected]]:
        """Run all downloads within `limits`, and yield their keys and results as they finish."""
        pool = ThreadPoolExecutor(self._config.threads, "download")
        try:
            with HostSlots(limits, self._config, lambda: self._finished.put(None)) as slots:
                while self._ready or self._delayed or self._running:
                    self._start(pool, slots)
                    self._give_up_pausing_hosts(slots)
                    yield from self._reject_given_up()
                    outcome = self._next_outcome(slots)
                    if outcome is None:
                        continue
                    job, future, seconds = outcome
                    self._running -= 1
                    slots.give_back(job.host)
                    result = self._result_of(job, future, seconds, slots)
                    # The free thread gets its next request before the caller decodes this result.
                    self._start(pool, slots)
                    if result is not None:
                        yield job.key, result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, slots: HostSlots) -> None:
        """Start as many requests as threads and hosts allow, and state how many more wait for each host."""
        now = time.monotonic()
        while self._delayed and self._delayed[0][0] <= now:
            self._enqueue(heapq.heappop(self._delayed)[2])
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
        # Each host is asked for slots for all free threads, so that a host that grants none does not block the others.
        free = self._config.threads - self._running + PREFETCH
        waiting = heapq.nsmallest(free + refused, self._ready, key=lambda host: self._ready[host][0][0])
        slots.want({host: min(len(self._ready[host]), free) for host in waiting})

    def _submit(self, pool: ThreadPoolExecutor, job: _Job) -> None:
        self._running += 1
        started = time.monotonic()
        future = pool.submit(self._client.get, job.url, job.seconds)
        future.add_done_callback(partial(self._on_done, job, started))

    def _enqueue(self, job: _Job) -> None:
        self._ready.setdefault(job.host, deque()).append((next(self._order), job))

    def _give_up_pausing_hosts(self, slots: HostSlots) -> None:
        """Stop downloading from all hosts that requested a pause longer than `max_wait_s` from any task."""
        for host, seconds in slots.pauses().items():
            if seconds > self._config.max_wait_s and host not in self._given_up:
                detail = f"the host asked for a pause of {seconds:.0f} s"
                self._given_up[host] = Rejected("unreachable", detail)

    def _reject_given_up(self) -> Iterator[tuple[int, Rejected]]:
        """Reject the records that wait for hosts from which nothing is downloaded any more."""
        if self._given_up:
            ready = (self._ready.pop(host, ()) for host in self._given_up)
            waiting = [job for _, job in itertools.chain.from_iterable(ready)]
            waiting += [job for _, _, job in self._delayed]
            self._delayed = [entry for entry in self._delayed if entry[2].host not in self._given_up]
            heapq.heapify(self._delayed)
            for job in waiting:
                if job.host in self._given_up:
                    yield job.key, _after_redirects(self._given_up[job.host], job)

    def _on_done(self, job: _Job, started: float, future: Future[IO[bytes] | Redirect]) -> None:
        if not future.cancelled():
            self._finished.put((job, future, time.monotonic() - started))

    def _next_outcome(self, slots: HostSlots) -> _Outcome | None:
        """Wait for the next request that finishes; return None if others may start first."""
        due = min([*slots.pause_ends(), *(due for due, _, _ in self._delayed[:1])], default=None)
        try:
            return self._finished.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
        except queue.Empty:
            return None

    def _result_of(
        self, job: _Job, future: Future[IO[bytes] | Redirect], seconds: float, slots: HostSlots
    ) -> bytes | Rejected | None:
        """Return the result of `job` after a request; None if the job continues with a redirect or another attempt."""
        try:
            answer = future.result()
            self._failures_in_a_row.pop(job.host, None)
            if isinstance(answer, Redirect):
                redirected = self._redirected(job, answer.url, seconds)
                # The redirect comes before all other jobs of its host.
                self._ready.setdefault(redirected.host, deque()).appendleft((-1, redirected))
                return None
            with answer:
                return answer.read()
        except Rejected as rejected:
            self._failures_in_a_row.pop(job.host, None)
            return _after_redirects(rejected, job)
        except TemporaryFailure as failure:
            return self._retry_or_reject(job, failure, slots)

    def _redirected(self, job: _Job, url: str, seconds: float) -> _Job:
        """The job that follows the redirect of `job` to `url`, after a request that took `seconds`."""
        if job.redirects == self._config.max_redirects:
            raise Rejected("too_many_redirects", f"more than {self._config.max_redirects} redirects")
        return replace(job, url=url, host=host_of(url), redirects=job.redirects + 1, seconds=job.seconds - seconds)

    def _retry_or_reject(self, job: _Job, failure: TemporaryFailure, slots: HostSlots) -> Rejected | None:
        """Put `job` off until its next attempt and return None; or return its rejection for this round."""
        host = job.host
        now = time.monotonic()
        if not self._failures_in_a_row[host]:
            self._failing_since[host] = now
        self._failures_in_a_row[host] += 1
        longest_pause = min(self._config.max_wait_s, FIRST_PAUSE_S * 2.0**job.failures)
        pause = random.uniform(0.0, longest_pause)
        if failure.retry_after_s is not None:
            # The random part spreads requests that the server asked to wait equally long.
            pause += failure.retry_after_s
        failures = job.failures + 1
        too_long = failure.retry_after_s is not None and failure.retry_after_s > self._config.max_wait_s
        if failure.host_is_busy:
            slots.pause(host, max(pause, longest_pause))
        series, remainder = divmod(self._failures_in_a_row[host], GIVEN_UP_AFTER)
        if series and not remainder:
            slots.pause(host, min(self._config.max_wait_s, FIRST_PAUSE_S * 2.0**series))
        lasting = now - self._failing_since[host] >= GIVEN_UP_AFTER_S
        if series and lasting:
            self._given_up[host] = Rejected("unreachable", f"{failure.detail} (another record of this host)")
        if failures >= self._config.attempts or too_long or host in self._given_up:
            attempts = f"{failures} attempt{'s' if failures > 1 else ''}"
            return _after_redirects(Rejected("unreachable", f"{failure.detail} ({attempts})"), job)
        next_attempt = _Job(
            job.key, job.address, job.address, self._config.deadline_s, host_of(job.address), failures=failures
        )
        heapq.heappush(self._delayed, (time.monotonic() + pause, next(self._order), next_attempt))
        return None


def _after_redirects(rejected: Rejected, job: _Job) -> Rejected:
    """`rejected`, with the target of the redirects of `job`, if any, added to the detail."""
    if not job.redirects:
        return rejected
    target = host_of(job.url) or urlsplit(job.url).scheme
    return Rejected(rejected.reason, f"{rejected.detail}, redirected to {target}")

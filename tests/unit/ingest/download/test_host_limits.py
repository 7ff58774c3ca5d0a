from __future__ import annotations

import random
import threading
import time
from collections import Counter

import pytest

from pipeline.config import HttpConfig
from pipeline.ingest.download.host_limits import BURST_S, LEASE_S, MAX_HOST_PAUSE_S, Answer, HostLimiter, HostSlots, Use


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def limiter(clock: Clock, **options: float) -> HostLimiter:
    return HostLimiter(HttpConfig.model_validate(options), clock=clock)


def test_slots_are_divided_among_the_tasks_that_want_them() -> None:
    limits = limiter(Clock(), requests_per_host=8)
    alone = limits.exchange("a", {"h": Use(waiting=20)}).grants["h"]
    assert (alone.slots, alone.keep) == (8, 8)
    assert limits.exchange("b", {"h": Use(waiting=20)}).grants["h"].slots == 0
    # As another task waits, the first one must reduce its slots to its share; the other gets those that it gives back.
    reduced = limits.exchange("a", {"h": Use(8, 8, 20)}).grants["h"]
    assert (reduced.slots, reduced.keep) == (0, 4)
    limits.exchange("a", {"h": Use(5, 5, 20)})
    assert limits.exchange("b", {"h": Use(waiting=20)}).grants["h"].slots == 3
    assert limits.slots_in_use() == {"h": 8}
    # Once no task lacks slots, none have to be given back.
    limits.exchange("b", {"h": Use(3, 3, 0)})
    assert limits.exchange("a", {"h": Use(5, 5, 20)}).grants["h"].keep == 8


def test_a_task_that_wants_little_leaves_the_rest_to_others() -> None:
    limits = limiter(Clock(), requests_per_host=8)
    assert limits.exchange("a", {"h": Use(waiting=1)}).grants["h"].slots == 1
    assert limits.exchange("b", {"h": Use(waiting=20)}).grants["h"].slots == 7


def test_hosts_do_not_share() -> None:
    limits = limiter(Clock(), requests_per_host=2)
    grants = limits.exchange("a", {"x": Use(waiting=5), "y": Use(waiting=5)}).grants
    assert [grants[host].slots for host in "xy"] == [2, 2]


def test_slots_of_a_task_that_is_silent_or_leaves_come_back() -> None:
    clock = Clock()
    limits = limiter(clock, requests_per_host=4)
    limits.exchange("killed", {"h": Use(waiting=4)})
    clock.now += LEASE_S - 1
    assert limits.exchange("b", {"h": Use(waiting=4)}).grants["h"].slots == 0
    clock.now += 2
    assert limits.exchange("b", {"h": Use(waiting=4)}).grants["h"].slots == 4
    limits.exchange("b", {})
    assert limits.slots_in_use() == {}


def test_a_limiter_that_was_restarted_learns_what_is_in_use() -> None:
    limits = limiter(Clock(), requests_per_host=4)
    limits.exchange("a", {"h": Use(3, 3, 5)})
    assert limits.exchange("b", {"h": Use(waiting=4)}).grants["h"].slots <= 1
    assert limits.slots_in_use()["h"] <= 4


@pytest.mark.parametrize("rate", [2.0, 50.0])
def test_starts_of_all_tasks_together_keep_to_the_rate(rate: float) -> None:
    clock = Clock()
    limits = limiter(clock, requests_per_host=100, requests_per_second_per_host=rate)
    held = {task: Use() for task in "abc"}
    rng = random.Random(0)
    granted = 0
    for _ in range(1000):
        clock.now += 0.02
        task = rng.choice("abc")
        grant = limits.exchange(task, {"h": held[task]._replace(waiting=30)}).grants["h"]
        granted += grant.starts
        held[task] = Use(held[task].slots + grant.slots)
    assert rate * 20 * 0.95 <= granted <= rate * 20 + max(1, rate * BURST_S)


def test_a_host_that_asks_for_a_pause_gets_it_from_all_tasks() -> None:
    clock = Clock()
    limits = limiter(clock, requests_per_second_per_host=10)
    limits.exchange("a", {"h": Use(pause_s=5)})
    assert limits.exchange("b", {"h": Use(waiting=3)}).grants["h"][2:] == (0, 5.0)
    clock.now += 5
    assert limits.exchange("b", {"h": Use(waiting=3)}).grants["h"].starts == 2
    limits.exchange("a", {"h": Use(pause_s=1e9)})
    assert limits.exchange("b", {"h": Use(waiting=3)}).grants["h"].pause_s == MAX_HOST_PAUSE_S


def test_the_limit_holds_for_any_reports_of_the_tasks() -> None:
    clock = Clock()
    limits = limiter(clock, requests_per_host=5)
    rng = random.Random(1)
    slots: Counter[str] = Counter()
    for _ in range(3000):
        clock.now += rng.choice([0.01, 0.5, 3.0])
        task = rng.choice("abcd")
        running = rng.randint(0, slots[task])
        slots[task] = rng.randint(running, slots[task])
        slots[task] += limits.exchange(task, {"h": Use(slots[task], running, rng.randint(0, 9))}).grants["h"].slots
        for other in "abcd":  # all other tasks report, too
            slots[other] += limits.exchange(other, {"h": Use(slots[other], slots[other])}).grants["h"].slots
        assert sum(slots.values()) <= 5


def test_more_tasks_report_less_often() -> None:
    limits = limiter(Clock())
    pauses = [limits.exchange(f"task {i}", {f"h{i}": Use(waiting=1)}).pause_s for i in range(1000)]
    assert pauses[0] == 0.02
    assert pauses[-1] == 2.0


def work(limits: HostLimiter, config: HttpConfig, requests: int, seconds: float, running: list[int]) -> None:
    """Run a task of `requests` requests of `seconds` each to one host; append starts (1) and ends (-1) to `running`."""
    changed = threading.Event()
    ends: list[float] = []
    with HostSlots(limits.exchange, config, changed.set) as slots:
        while requests or ends:
            now = time.monotonic()
            for _ in [end for end in ends if end <= now]:
                running.append(-1)
                slots.give_back("h")
            ends = [end for end in ends if end > now]
            slots.want({"h": requests} if requests else {})
            while requests and slots.take("h"):
                requests -= 1
                running.append(1)
                ends.append(time.monotonic() + seconds)
            changed.wait(0.005)
            changed.clear()


def test_tasks_share_a_host_and_all_come_through() -> None:
    config = HttpConfig(requests_per_host=3)
    limits = HostLimiter(config)
    running: list[int] = []
    tasks = [threading.Thread(target=work, args=(limits, config, 20, 0.01, running)) for _ in range(3)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(20)
    assert sum(running) == 0
    assert running.count(1) == 60
    most = max(sum(running[: i + 1]) for i in range(len(running)))
    assert most <= 3
    assert limits.slots_in_use() == {}


def test_a_failing_limiter_raises_its_error() -> None:
    def broken(task: str, uses: dict[str, Use]) -> Answer:
        raise RuntimeError("gone")

    changed = threading.Event()
    with HostSlots(broken, HttpConfig(), changed.set) as slots:
        assert changed.wait(5)
        with pytest.raises(RuntimeError, match="gone"):
            slots.want({"h": 1})

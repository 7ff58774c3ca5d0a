"""Many downloads at once, from a real server on the loopback interface."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.config import HttpConfig
from pipeline.ingest.download import downloads
from pipeline.ingest.download.downloads import download
from pipeline.ingest.download.host_limits import HostLimiter, Use
from pipeline.ingest.download.request import HttpClient
from pipeline.ingest.download.urls import is_url
from pipeline.ingest.rejection import Rejected
from tests.support.http_server import Handler, Site, serving

pytestmark = pytest.mark.slow


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        site.pages["/ok"] = lambda handler: handler.reply(200, handler.path.encode())
        yield site


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "FIRST_PAUSE_S", 0.02)


def run(urls: list[str], **options: Any) -> list[bytes | Rejected]:
    config = HttpConfig(**{"allow_private_hosts": True, **options})
    limits = HostLimiter(config)
    found = dict(download(dict(enumerate(urls)), 1 << 20, config, limits.exchange))
    assert sorted(found) == list(range(len(urls)))
    assert limits.slots_in_use() == {}
    return [found[i] for i in range(len(urls))]


def reason(result: bytes | Rejected) -> str:
    assert isinstance(result, Rejected)
    return result.reason


def failing(times: int, status: int = 503, **headers: str) -> Callable[[Handler], None]:
    """A page that fails the first `times` times for each path, and succeeds afterwards."""
    hits: dict[str, int] = {}

    def page(handler: Handler) -> None:
        hits[handler.path] = hits.get(handler.path, 0) + 1
        if hits[handler.path] <= times:
            handler.reply(status, b"", {name.replace("_", "-"): value for name, value in headers.items()})
        else:
            handler.reply(200, b"at last")

    return page


def test_every_address_comes_back_once(site: Site) -> None:
    urls = [site.url(f"/ok/{i}") for i in range(100)]
    assert run(urls) == [f"/ok/{i}".encode() for i in range(100)]
    assert site.most_at_once <= 16
    assert set(site.hits().values()) == {1}


def test_only_passing_failures_are_tried_again(site: Site) -> None:
    site.pages["/flaky"] = failing(2)
    site.pages["/down"] = failing(99)
    flaky, down, gone, ok = run([site.url(path) for path in ("/flaky", "/down", "/none", "/ok")])
    assert (flaky, ok) == (b"at last", b"/ok")
    assert isinstance(down, Rejected)
    assert (down.reason, down.detail) == ("unreachable", "HTTP 503 Service Unavailable (3 attempts)")
    assert reason(gone) == "http_error"
    assert site.hits() == {"/flaky": 3, "/down": 3, "/none": 1, "/ok": 1}


def test_retry_after_is_waited_for_while_others_go_on(site: Site) -> None:
    site.pages["/later"] = failing(1, Retry_After="1")
    urls = {0: site.url("/later")} | {i: site.url(f"/ok/{i}") for i in range(1, 30)}
    config = HttpConfig(allow_private_hosts=True)
    started = time.monotonic()
    order = [key for key, _ in download(urls, 1000, config, HostLimiter(config).exchange)]
    assert order[-1] == 0
    assert 1 <= time.monotonic() - started < 3
    first, second = (seen.at for seen in site.seen if seen.path == "/later")
    assert second - first >= 1


def test_a_busy_host_is_left_alone_with_all_its_records(site: Site) -> None:
    answers = iter([429])

    def page(handler: Handler) -> None:
        if (status := next(answers, None)) is not None:
            handler.reply(status, b"", {"Retry-After": "1"})
        else:
            handler.reply(200, b"ok")

    site.pages["/busy"] = page
    assert run([site.url(f"/busy/{i}") for i in range(6)], threads=1) == [b"ok"] * 6
    assert site.seen[1].at - site.seen[0].at >= 1


def test_a_pause_that_another_task_learned_of_is_kept(site: Site) -> None:
    def page(handler: Handler) -> None:
        time.sleep(0.15)
        handler.reply(200, b"ok")

    site.pages["/ok"] = page
    config = HttpConfig(allow_private_hosts=True, threads=1)
    limits = HostLimiter(config)
    results = download({i: site.url(f"/ok/{i}") for i in range(14)}, 1000, config, limits.exchange)
    next(results)
    limits.exchange("another", {"127.0.0.1": Use(pause_s=2.0)})
    assert len(list(results)) == 13
    times = [seen.at for seen in site.seen]
    assert max(b - a for a, b in itertools.pairwise(times)) > 0.7


def test_who_asks_for_too_long_a_pause_is_asked_again_in_another_round(site: Site) -> None:
    site.pages["/busy"] = failing(99, 429, Retry_After="3600")
    started = time.monotonic()
    results = run([site.url(f"/busy/{i}") for i in range(50)], threads=4)
    assert {reason(result) for result in results} == {"unreachable"}
    assert len(site.seen) <= 8
    assert time.monotonic() - started < 2


def test_a_host_that_is_down_is_not_asked_for_every_record(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "GIVEN_UP_AFTER_S", 0.0)
    site.pages["/down"] = failing(99)
    urls = [site.url(f"/down/{i}") for i in range(200)]
    started = time.monotonic()
    assert {reason(result) for result in run(urls, threads=4)} == {"unreachable"}
    assert len(site.seen) < 30
    assert time.monotonic() - started < 3


def test_a_short_fault_of_a_busy_host_costs_no_record(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "FIRST_PAUSE_S", 0.25)
    up_at = time.monotonic() + 0.4

    def page(handler: Handler) -> None:
        handler.reply(*((200, b"ok") if time.monotonic() > up_at else (503, b"")))

    site.pages["/hiccup"] = page
    assert run([site.url(f"/hiccup/{i}") for i in range(200)], attempts=6) == [b"ok"] * 200


def test_a_host_that_asks_for_an_hour_is_left_alone_by_all_tasks(site: Site) -> None:
    site.pages["/busy"] = failing(999, 429, Retry_After="1800")
    config = HttpConfig(allow_private_hosts=True, threads=4)
    limits = HostLimiter(config)
    for task in range(5):
        urls = {i: site.url(f"/busy/{task}-{i}") for i in range(30)}
        found = dict(download(urls, 1 << 20, config, limits.exchange))
        assert {reason(result) for result in found.values()} == {"unreachable"}
    assert len(site.seen) <= 4


def redirecting(location: Callable[[Handler], str]) -> Callable[[Handler], None]:
    return lambda handler: handler.reply(302, b"", {"Location": location(handler)})


def test_redirects_are_followed_so_far(site: Site) -> None:
    def next_step(handler: Handler) -> str:
        left = int(handler.path.rpartition("/")[2])
        return f"/hop/{left - 1}" if left > 1 else "/ok"

    site.pages["/hop"] = redirecting(next_step)
    three, four = run([site.url("/hop/3"), site.url("/hop/4")], max_redirects=3)
    assert three == b"/ok"
    assert reason(four) == "too_many_redirects"
    assert reason(run([site.url("/hop/1")], max_redirects=0)[0]) == "too_many_redirects"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://127.0.0.2:{port}/ok", "private_address"),
        ("http://169.254.169.254/latest/meta-data/", "private_address"),
        ("http://[::ffff:10.0.0.1]/", "private_address"),
        ("file:///etc/passwd", "bad_url"),
        ("http://[broken", "bad_url"),
    ],
)
def test_each_hop_is_checked(location: str, expected: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first host counts as public, like a hostile server on the internet.
    monkeypatch.setattr("pipeline.ingest.download.public_addresses.is_public", lambda address: address == "127.0.0.1")
    site.pages["/moved"] = redirecting(lambda _: location.format(port=site.port))
    [result] = run([site.url("/moved")], allow_private_hosts=False)
    assert reason(result) == expected
    assert site.hits() == {"/moved": 1}


def test_a_redirect_to_another_name_does_not_get_the_credentials(site: Site) -> None:
    site.pages["/moved"] = redirecting(lambda _: site.url("/ok", "localhost"))
    assert run([site.url("/moved").replace("//", "//user:secret@")]) == [b"/ok"]
    assert "Authorization" in site.seen[0].headers
    assert "Authorization" not in site.seen[1].headers


def test_the_deadline_spans_all_hops(site: Site) -> None:
    def slow(handler: Handler) -> None:
        time.sleep(0.25)
        handler.reply(302, b"", {"Location": "/slow"})

    site.pages["/slow"] = slow
    started = time.monotonic()
    [result] = run([site.url("/slow")], deadline_s=0.4, attempts=1, max_redirects=50)
    assert reason(result) == "unreachable"
    assert time.monotonic() - started < 1


def test_a_slow_host_does_not_hold_up_the_others(site: Site) -> None:
    release = threading.Event()

    def stuck(handler: Handler) -> None:
        release.wait(5)
        handler.reply(200, b"stuck")

    site.pages["/stuck"] = stuck
    urls = {i: site.url("/stuck") for i in range(40)} | {i: site.url("/ok", "localhost") for i in range(40, 80)}
    config = HttpConfig(allow_private_hosts=True, threads=8, requests_per_host=4)
    order = []
    for key, _ in download(urls, 1000, config, HostLimiter(config).exchange):
        order.append(key)
        if len(order) == 40:
            release.set()
    assert set(order[:40]) == set(range(40, 80))
    assert sorted(order) == list(range(80))


def test_the_concurrency_and_rate_of_a_host_are_kept(site: Site) -> None:
    def page(handler: Handler) -> None:
        time.sleep(0.02)
        handler.reply(200, b"ok")

    site.pages["/ok"] = page
    run([site.url(f"/ok/{i}") for i in range(30)], requests_per_host=3)
    assert 2 <= site.most_at_once <= 3
    site.seen.clear()
    run([site.url(f"/ok/{i}") for i in range(20)], requests_per_second_per_host=20)
    times = sorted(seen.at for seen in site.seen)
    assert times[-1] - times[0] >= (20 - 5) / 20
    assert times[-1] - times[0] < 4


def test_memory_is_bounded_by_the_threads_when_the_caller_is_slow(site: Site) -> None:
    config = HttpConfig(allow_private_hosts=True, threads=4)
    results = download({i: site.url(f"/ok/{i}") for i in range(60)}, 1000, config, HostLimiter(config).exchange)
    for taken, _ in enumerate(results, 1):
        if taken <= 5:
            time.sleep(0.1)
            assert len(site.seen) <= taken + 5
    assert len(site.seen) == 60


def test_a_fault_of_the_machine_ends_everything(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(self: HttpClient, url: str, seconds: float) -> Any:
        raise MemoryError("full")

    monkeypatch.setattr(HttpClient, "get", get)
    with pytest.raises(MemoryError, match="full"):
        run([site.url("/ok")])


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://a", True),
        ("HTTPS://a", True),
        ("/http://a", False),
        ("file:///a", False),
        ("s3://b/k", False),
        ("http:/", False),
    ],
)
def test_what_is_a_url(address: str, expected: bool) -> None:
    assert is_url(address) == expected

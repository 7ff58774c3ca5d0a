"""The ingest stage on crawls of URLs, with a real local Ray and a real local server."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import HttpConfig, load_config
from pipeline.errors import SourceError, StorageError, user_error
from pipeline.ingest import stage
from pipeline.ingest.download.downloads import download
from pipeline.ingest.download.host_limits import Use, limits_of, start_limiter
from pipeline.paths import CrawlPaths
from pipeline.records import Crawl, CrawlRecord
from pipeline.shards import complete_crawls, publish_shard, read_shard
from pipeline.storage import LocalStorage, read_table
from tests.support.crawl_files import encoded, photograph
from tests.support.http_server import Handler, Site, serving

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        site.pages["/photo"] = lambda handler: handler.reply(200, encoded(photograph(int(handler.path[7:]))))
        yield site


class Crawler:
    """Ingests lists of URLs into one workspace."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source = folder / "source"
        self.source.mkdir()
        self.storage = LocalStorage(str(folder / "ws"))
        self.urls: list[str] = []
        monkeypatch.setattr(stage, "read_records", lambda *_: map(self.record, self.urls))

    def record(self, url: str) -> CrawlRecord:
        return CrawlRecord(url, file_name=url, source_url=url, extra={"url": url})

    def run(self, shard: int = 5, **http: Any) -> Crawl:
        options = {"allow_private_hosts": True, "round_pause_s": 0.1, "attempts": 1, **http}
        flags = {f"ingest.http.{name}": value for name, value in options.items()}
        flags |= {"ingest.image_size": 16, "ingest.records_per_shard": shard, "collection": "c"}
        config = load_config(None, {"source": str(self.source), "workspace": self.storage.root, **flags}, [])
        return stage.ingest(self.storage, config)

    def rows(self, crawl: Crawl) -> list[dict[str, Any]]:
        paths = CrawlPaths("c", crawl.crawl_id)
        return [row for i in range(crawl.n_shards) for row in read_table(self.storage, paths.rows(i)).to_pylist()]

    def shards(self, crawl: Crawl) -> list[bytes]:
        paths = CrawlPaths("c", crawl.crawl_id)
        return [self.storage.read_bytes(paths.shard(i)) for i in range(crawl.n_shards)]


@pytest.fixture
def crawler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crawler:
    return Crawler(tmp_path, monkeypatch)


def test_urls_become_shards_in_the_order_of_the_plan(site: Site, crawler: Crawler) -> None:
    site.pages["/html"] = lambda handler: handler.reply(200, b"<!DOCTYPE html>login", {"Content-Type": "image/jpeg"})
    site.pages["/json"] = lambda handler: handler.reply(200, b'{"error": "gone"}', {"Content-Type": "image/jpeg"})
    site.pages["/empty"] = lambda handler: handler.reply(200)
    site.pages["/noai"] = lambda handler: handler.reply(200, encoded(photograph(1)), {"X-Robots-Tag": "noai"})
    site.pages["/no"] = lambda handler: handler.reply(404, encoded(photograph(2)))

    def slow(handler: Handler) -> None:
        time.sleep(0.3)
        handler.reply(200, encoded(photograph(0)))

    site.pages["/slow"] = slow
    photos = [f"/photo/{i}" for i in range(10)]
    # The slow page comes first in the plan, so /photo/0 is its duplicate although it is downloaded earlier.
    crawler.urls = [site.url(path) for path in ["/slow", *photos, "/html", "/json", "/empty", "/noai", "/no"]]
    crawler.urls[3] = crawler.urls[3].replace("//", "//user:secret@")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        crawler.urls.append(f"http://127.0.0.1:{closed.getsockname()[1]}/")
        crawl = crawler.run(rounds=1)
    rows = crawler.rows(crawl)
    outcomes = [row["reason"] or row["status"] for row in rows]
    assert outcomes == [
        "accepted", "duplicate", *["accepted"] * 9, "not_an_image", "not_an_image", "empty", "robots_opt_out",
        "http_error", "unreachable",
    ]  # fmt: skip
    assert rows[1]["duplicate_of"] == rows[0]["image_id"]
    paths = CrawlPaths("c", crawl.crawl_id)
    samples = [s for i in range(crawl.n_shards) for s in read_shard(crawler.storage, paths.shard(i))]
    assert [s.image_id for s in samples] == [row["image_id"] for row in rows if row["status"] == "accepted"]
    assert "secret" not in str(rows) + str([s.metadata for s in samples])
    assert rows[3]["source_uri"] == site.url("/photo/2")
    assert b"secret" not in crawler.storage.read_bytes(paths.marker)


def test_ingest_stops_asking_when_all_answers_are_pages(site: Site, crawler: Crawler) -> None:
    site.pages["/p"] = lambda handler: handler.reply(200, b"<!DOCTYPE html><html>a page</html>")
    crawler.urls = [site.url(f"/p/{i}") for i in range(300)]
    with pytest.raises(SourceError) as caught:
        crawler.run(shard=300)
    error = user_error(caught.value)
    assert "first 100 answers are web pages, not images" in str(error)
    assert len(site.seen) < 150
    assert complete_crawls(crawler.storage, "c") == []


def test_private_hosts_are_refused_by_default(site: Site, crawler: Crawler) -> None:
    crawler.urls = [site.url("/photo/1"), "http://localhost/x", "http://[::1]/"]
    crawl = crawler.run(allow_private_hosts=False)
    assert crawl.rejected == {"private_address": 3}
    assert not site.seen


def test_only_temporary_failures_are_retried_in_another_round(
    site: Site, crawler: Crawler, capsys: pytest.CaptureFixture[str]
) -> None:
    crawler.urls = [site.url(f"/photo/{i}") for i in range(12)]
    undisturbed = crawler.run()
    expected = crawler.shards(undisturbed)
    for key in list(crawler.storage.list("")):
        crawler.storage.delete(key)
    site.seen.clear()
    photo = site.pages["/photo"]
    failed: set[str] = set()

    def flaky(handler: Handler) -> None:
        if handler.path in {"/photo/1", "/photo/3", "/photo/11"} - failed:
            failed.add(handler.path)
            handler.reply(503)
        else:
            photo(handler)

    site.pages["/photo"] = flaky
    crawl = crawler.run()
    assert crawl == undisturbed
    assert crawler.shards(crawl) == expected
    assert sorted(n for n in site.hits().values()) == [1] * 9 + [2] * 3
    assert "unreachable: 3 records of 2 shards; retrying in 0.1 s" in capsys.readouterr().out


def test_a_complete_crawl_is_reopened_only_for_unreachable_records(
    site: Site, crawler: Crawler, capsys: pytest.CaptureFixture[str]
) -> None:
    crawler.urls = [site.url(f"/{page}/{i}") for page in ("photo", "later") for i in range(6)]
    site.pages["/later"] = lambda handler: handler.reply(503)
    first = crawler.run()
    assert (first.accepted, first.rejected) == (6, {"unreachable": 6})
    assert "run the same command with --retry-unreachable" in capsys.readouterr().out
    site.seen.clear()
    assert crawler.run(threads=3) == first  # the pace is not part of the crawl id
    assert not site.seen
    site.pages["/later"] = lambda handler: handler.reply(200, encoded(photograph(100 + int(handler.path[7:]))))
    second = crawler.run(retry_unreachable=True)
    assert second.crawl_id == first.crawl_id
    assert (second.accepted, second.rejected) == (12, {})
    assert {path.split("/")[1] for path in site.hits()} == {"later"}
    assert [row["status"] for row in crawler.rows(second)] == ["accepted"] * 12
    assert complete_crawls(crawler.storage, "c") == [second]
    site.seen.clear()
    assert crawler.run(retry_unreachable=True) == second
    assert not site.seen


def test_a_round_that_was_interrupted_goes_on(site: Site, crawler: Crawler, monkeypatch: pytest.MonkeyPatch) -> None:
    crawler.urls = [site.url(f"/{page}/{i}") for page in ("photo", "later") for i in range(6)]
    site.pages["/later"] = lambda handler: handler.reply(503)

    def interrupted(seconds: float) -> None:
        raise StorageError("stopped between two rounds")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingest.stage.time.sleep", interrupted)
        with pytest.raises(StorageError, match="between two rounds"):
            crawler.run()
    assert complete_crawls(crawler.storage, "c") == []
    site.seen.clear()
    site.pages["/later"] = site.pages["/photo"]
    assert crawler.run().accepted + crawler.run().rejected.get("duplicate", 0) == 12
    assert {path.split("/")[1] for path in site.hits()} == {"later"}


def test_images_that_a_killed_retry_left_in_a_tar_are_removed_even_with_one_round(site: Site, crawler: Crawler) -> None:
    crawler.urls = [site.url("/photo/0"), site.url("/later/1")]
    site.pages["/later"] = lambda handler: handler.reply(503)
    first = crawler.run(rounds=1)
    paths = CrawlPaths("c", first.crawl_id)
    (kept,) = read_shard(crawler.storage, paths.shard(0))
    publish_shard(crawler.storage, paths.shard(0), [kept, replace(kept, image_id="f" * 20)])
    crawler.storage.delete(paths.repeats)
    crawler.storage.delete(paths.marker)
    again = crawler.run(rounds=1)
    assert (again.accepted, again.rejected) == (1, {"unreachable": 1})
    assert [sample.image_id for sample in read_shard(crawler.storage, paths.shard(0))] == [kept.image_id]


def test_limits_of_a_host_hold_across_processes(site: Site) -> None:
    import ray

    def page(handler: Handler) -> None:
        time.sleep(0.03)
        handler.reply(200, b"ok")

    site.pages["/ok"] = page
    config = HttpConfig(allow_private_hosts=True, requests_per_host=3, requests_per_second_per_host=40)
    limiter = start_limiter(config)

    def task(first: int, limiter: Any, url: str) -> tuple[int, int]:
        urls = {i: f"{url}/{i}" for i in range(first, first + 25)}
        return os.getpid(), sum(content == b"ok" for _, content in download(urls, 1000, config, limits_of(limiter)))

    started = [ray.remote(task).remote(first, limiter, site.url("/ok")) for first in (0, 100)]
    done = ray.get(started, timeout=60)
    assert len({pid for pid, _ in done}) == 2
    assert [n for _, n in done] == [25, 25]
    assert site.most_at_once <= 3
    times = sorted(seen.at for seen in site.seen)
    # At most 40 requests per second (20 in half a second), the saved-up burst, and a margin for delays of the server.
    most = max(sum(1 for at in times if begin <= at < begin + 0.5) for begin in times)
    assert most <= 20 + 8 + 4


def test_slots_of_a_killed_task_come_back() -> None:
    import ray

    limiter = start_limiter(HttpConfig(requests_per_host=4), lease_s=1.0)

    def dies(limiter: Any) -> None:
        limits_of(limiter)("doomed", {"h": Use(waiting=4)})
        os._exit(1)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(ray.remote(max_retries=0)(dies).remote(limiter), timeout=60)
    exchange = limits_of(limiter)
    assert exchange("heir", {"h": Use(waiting=4)}).grants["h"].slots == 0
    until = time.monotonic() + 10
    while not exchange("heir", {"h": Use(waiting=4)}).grants["h"].slots:
        assert time.monotonic() < until
        time.sleep(0.2)

"""Crawls as people have them, from ../shared/field: each is ingested, with a real server where it names addresses."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.errors import SourceError
from pipeline.ingest.stage import ingest
from pipeline.paths import CrawlPaths
from pipeline.storage import LocalStorage, read_table

FIELD = Path(__file__).parents[3] / "shared" / "field"
pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.skipif(not FIELD.exists(), reason="../shared is missing"),
]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Suppress the log."""


@contextmanager
def served(case: str) -> Iterator[None]:
    """Serve the folder ``www`` of a case on the port that its addresses name, if they name any."""
    ports = {
        int(port)
        for file in (FIELD / case).rglob("*")
        if file.is_file() and "www" not in file.parts
        for port in re.findall(rb"127\.0\.0\.1:(\d+)", file.read_bytes().replace(b"\0", b""))
    }
    if not (FIELD / case / "www").exists() or not ports:
        yield
        return
    handler = functools.partial(QuietHandler, directory=str(FIELD / case / "www"))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", ports.pop()), handler)
    except OSError as error:
        pytest.skip(f"the port of the case is in use: {error}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def rows(case: str, source: str, workspace: Path, **options: Any) -> list[dict[str, Any]]:
    """Ingest a source of a case; return the rows of all its records."""
    flags = {
        "collection": "c", "source": str(FIELD / case / source), "workspace": str(workspace), "ingest.image_size": 16,
        "ingest.http.allow_private_hosts": True, "ingest.http.attempts": 1, "ingest.http.rounds": 1,
        **{f"ingest.{name}": value for name, value in options.items()},
    }  # fmt: skip
    storage = LocalStorage(str(workspace))
    with served(case):
        crawl = ingest(storage, load_config(None, flags, []))
    paths = CrawlPaths("c", crawl.crawl_id)
    return [row for i in range(crawl.n_shards) for row in read_table(storage, paths.rows(i)).to_pylist()]


def outcomes(found: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    """The files of rows and why they were rejected; a duplicate was fetched and decoded like an accepted image."""
    return [(row["file_name"], None if "duplicate" in (row["reason"] or "") else row["reason"]) for row in found]


@pytest.mark.parametrize(
    ("case", "source", "files"),
    [
        ("tsv-quotes", "posts.tsv", [f"{i}.jpg" for i in range(1, 6)]),
        ("url-column-is-the-page", "apify.csv", ["2.jpg"]),
        ("url-column-is-the-page", "pages.csv", ["3.jpg"]),
        ("url-column-is-the-page", "unsplash.tsv", ["1.jpg"]),
        ("empty-part-file", "csv", ["1.jpg"]),
        ("empty-part-file", "spark", ["1.jpg", "2.jpg"]),
        ("list-bom-utf16", "notepad.txt", ["1.jpg", "2.jpg", "3.jpg"]),
        ("list-bom-utf16", "powershell.txt", ["1.jpg", "2.jpg", "3.jpg"]),
        ("list-bom-utf16", "powershell.jsonl", ["1.jpg", "2.jpg", "3.jpg"]),
        ("parquet-binary-strings", "impala.parquet", ["1.jpg", "2.jpg"]),
        ("hashtags-of-other-scripts", "posts.csv", ["1.jpg", "2.jpg"]),
        ("metadata-with-same-stem", "gallery-dl", ["post_1.jpg"]),
        ("metadata-with-same-stem", "img2dataset", ["000000000.jpg", "000000001.jpg"]),
        ("jpeg-without-end-marker", "photos", ["0.jpg", "1.jpg", "2.jpg"]),
        ("fourcat", "posts.csv", ["a.jpg", "b.jpg", "c.jpg"]),
        ("apify", "posts.jsonl", ["a.jpg", "b.jpg", "c.jpg"]),
        ("zeeschuimer", "capture.ndjson", ["a.jpg"]),
        *((f"instaloader-filename-pattern/{i}", "", [name]) for i, name in enumerate(
            ["2020-09-13_12-26-40_UTC__CAAAAAAAAAA.jpg", "CAAAAAAAAAB.jpg", "profile_2020-09-13_12-26-40_UTC.jpg",
             "2020-09-13 12-26-40 UTC.jpg"])),
    ],
)  # fmt: skip
def test_every_image_of_a_crawl_is_ingested_and_nothing_else(
    case: str, source: str, files: list[str], tmp_path: Path
) -> None:
    if not (FIELD / case / source).exists():
        pytest.skip(f"{case} is missing")
    assert outcomes(rows(case, source, tmp_path)) == [(name, None) for name in files]


def test_posts_have_their_captions_times_and_hashtags(tmp_path: Path) -> None:
    first, second, third = rows("fourcat", "posts.csv", tmp_path)
    assert first["caption"] == second["caption"] == "Trevi #trevifountain"
    assert (first["shortcode"], third["shortcode"], third["caption"]) == ("CODE1", "CODE2", "Trevi 2 #trevifountain")
    assert (first["hashtags"], first["taken_at"].isoformat()) == (["trevifountain"], "2026-10-01T10:00:00+00:00")


def test_hashtags_are_whole_in_all_scripts(tmp_path: Path) -> None:
    first, second = rows("hashtags-of-other-scripts", "posts.csv", tmp_path)
    assert first["hashtags"] == ["हिन्दी", "สวัสดี", "മലയാളം", "தமிழ்", "paris"]
    assert second["hashtags"] == []


def test_quotes_of_a_tsv_are_text(tmp_path: Path) -> None:
    captions = [row["caption"] for row in rows("tsv-quotes", "posts.tsv", tmp_path)]
    assert captions == ['"Best day ever', "plain", "third", '"Home" at last', "last"]


def test_what_is_hostile_is_a_row_with_a_reason_or_refused(tmp_path: Path) -> None:
    hostile = tmp_path / "crawl"
    hostile.mkdir()
    for name in ("fits-gzip.jpg", "blp-with-5000-scans.jpg", "size-2-63.tar"):
        (hostile / name).write_bytes((FIELD / "hostile" / name).read_bytes())
    found = dict(outcomes(rows("hostile", str(hostile), tmp_path / "ws")))
    assert found == {
        "blp-with-5000-scans.jpg": "unsupported_format", "fits-gzip.jpg": "unsupported_format",
        "size-2-63.tar": "corrupt",
    }  # fmt: skip
    with pytest.raises(SourceError, match="2 images, but 20000000 labels"):
        rows("hostile", "labels-bomb.npz", tmp_path / "ws2")

"""The ingest stage with a real local Ray."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from pipeline.config import JobConfig, load_config
from pipeline.errors import ConfigError, PipelineError, SourceError, StorageError, user_error
from pipeline.ingest import stage
from pipeline.ingest.plan import Plan, write_plan
from pipeline.ingest.sources.metadata import storable
from pipeline.ingest.stage import ingest
from pipeline.paths import CrawlPaths
from pipeline.records import PLAN_SCHEMA, SHARD_SCHEMA, Crawl, CrawlRecord
from pipeline.session import ray_task, run_bounded
from pipeline.shards import complete_crawls, read_shard
from pipeline.storage import LocalStorage, read_json, read_table, write_table
from tests.support.crawl_files import encoded, node, photograph, png_bomb, write_metadata
from tests.support.dump_files import gallery_dl_dump, img2dataset_dump, instaloader_dump, put, tar
from tests.support.hostile_files import PHOTOGRAPHS, REJECTED, WHITE

pytestmark = pytest.mark.usefixtures("ray_cluster")
MARKUP = "<script>alert(1)</script> \0\x1b[2J\u202e #<b>"
MAKE_CRAWL = Path(__file__).parents[3] / "shared" / "tools" / "make_crawl.py"


def job(source: Path | list[str], workspace: Path, **ingest_options: Any) -> JobConfig:
    options = {"image_size": 16, "records_per_shard": 5, **ingest_options}
    flags = {f"ingest.{name}": value for name, value in options.items()}
    sources = source if isinstance(source, list) else str(source)
    return load_config(None, {"collection": "c", "source": sources, "workspace": str(workspace), **flags}, [])


def run(source: Path | list[str], workspace: Path, **ingest_options: Any) -> Crawl:
    return ingest(LocalStorage(str(workspace)), job(source, workspace, **ingest_options))


def rows(workspace: Path, crawl: Crawl) -> list[dict[str, Any]]:
    storage, paths = LocalStorage(str(workspace)), CrawlPaths("c", crawl.crawl_id)
    return [row for i in range(crawl.n_shards) for row in read_table(storage, paths.rows(i)).to_pylist()]


def contents(workspace: Path) -> dict[str, bytes]:
    """All published files by key, without the marker, which contains times."""
    storage = LocalStorage(str(workspace))
    return {key: storage.read_bytes(key) for key in storage.list("") if not key.endswith("/crawl.json")}


@pytest.fixture
def crawl_folder(tmp_path: Path) -> Path:
    """A crawl of 21 records: 12 photographs, 2 duplicates, and 7 other files that a scraper may leave."""
    folder = tmp_path / "crawl"
    folder.mkdir()
    files = {f"{i:02d}.jpg": encoded(photograph(i)) for i in range(12)}
    files |= {"05-again.jpg": files["05.jpg"], "zz-again.jpg": files["00.jpg"]}
    files |= {
        "bomb.png": png_bomb(60_000, 60_000),
        "cut.jpg": files["01.jpg"][:500],
        "empty.jpg": b"",
        "login.jpg": b"<!DOCTYPE html>",
        "tiny.png": encoded(photograph(0, 2, 2), "PNG"),
        "video.mp4": b"\0\0\0\x20ftypisom" + bytes(100),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    write_metadata(folder, [node(name) for name in [*files, "gone.jpg"]])
    return folder


def test_every_record_is_accounted_for(crawl_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = tmp_path / "ws"
    crawl = run(crawl_folder, workspace)
    assert (crawl.records, crawl.accepted, crawl.n_shards) == (21, 12, 5)
    assert crawl.rejected == {
        "duplicate": 2, "empty": 1, "missing_file": 1, "not_an_image": 1, "too_many_pixels": 1, "too_small": 1,
        "truncated": 1, "video": 1,
    }  # fmt: skip
    out = capsys.readouterr().out
    assert "ingest    21 records: 12 accepted, 9 rejected (2 duplicate, " in out
    assert " stored, short side 48 to 48 px, median 48, 12 JPEG\n" in out
    assert re.search(r"^ingest    21 records in [\d.]+ s, [\d.,]+ records/s; 1\d accepted$", out, re.MULTILINE), out

    table = rows(workspace, crawl)
    assert [row["record"] for row in table] == list(range(21))
    names = sorted(p.name for p in crawl_folder.iterdir() if p.suffix != ".json")
    assert [row["file_name"] for row in table] == [*names, "gone.jpg"]
    assert {row["status"] for row in table} == {"accepted", "rejected"}

    storage, paths = LocalStorage(str(workspace)), CrawlPaths("c", crawl.crawl_id)
    samples = [s for i in range(crawl.n_shards) for s in read_shard(storage, paths.shard(i))]
    assert [s.image_id for s in samples] == [row["image_id"] for row in table if row["status"] == "accepted"]
    assert {s.pixels().shape for s in samples} == {(16, 16, 3)}
    assert samples[0].metadata == {
        "image_id": samples[0].image_id,
        "source_uri": str(crawl_folder / "00.jpg"),
        "file_name": "00.jpg",
        "shortcode": "code of 00.jpg",
        "caption": "caption of 00.jpg #Trevi",
        "taken_at": "2020-09-13T12:26:40+00:00",
        "hashtags": ["trevi"],
        "source_url": "https://cdn.example/a/00.jpg",
        "label": None,
        "width": 48,
        "height": 48,
        "extra": {},
    }
    assert read_table(storage, paths.rows(0)).schema.equals(SHARD_SCHEMA)
    assert read_table(storage, paths.plan).schema.equals(PLAN_SCHEMA)
    assert complete_crawls(storage, "c") == [crawl]
    marker = read_json(storage, paths.marker)
    assert marker["statistics"]["bytes"] == sum(
        p.stat().st_size for p in crawl_folder.iterdir() if p.suffix not in {".json", ".mp4"}
    )
    statistics = marker["statistics"]
    assert statistics["stored_bytes"] == sum(len(sample.data) for sample in samples)
    assert sum(n for name, n in statistics.items() if name.startswith("format_")) == crawl.accepted
    assert statistics["short_side_px_median"] == statistics["long_side_px_max"] == 48
    assert statistics["with_caption"] == sum(row["caption"] is not None for row in table if row["status"] == "accepted")
    assert statistics["records_per_second"] > 0
    assert marker["config"]["image_size"] == 16


def test_a_complete_crawl_is_left_as_it_is(
    crawl_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = tmp_path / "ws"
    first = run(crawl_folder, workspace)
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*")}
    capsys.readouterr()
    assert run(crawl_folder, workspace) == first
    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*")} == before
    assert "is complete already, nothing to do" in capsys.readouterr().out


def test_an_interrupted_crawl_continues_to_the_same_bytes(
    crawl_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = tmp_path / "ws"
    first = run(crawl_folder, workspace)
    whole = contents(workspace)
    folder = workspace / "c" / "crawls" / first.crawl_id
    for name in ["crawl.json", "shards/shard-000000.parquet", "shards/shard-000003.parquet", "shards/shard-000003.tar"]:
        (folder / name).unlink()
    kept = folder / "shards/shard-000001.tar"
    built_at = kept.stat().st_mtime_ns
    assert run(crawl_folder, workspace) == first
    assert "3 of 5 shards are done already, 2 to build" in capsys.readouterr().out
    assert contents(workspace) == whole
    assert kept.stat().st_mtime_ns == built_at


def test_two_workspaces_get_the_same_bytes(crawl_folder: Path, tmp_path: Path) -> None:
    assert run(crawl_folder, tmp_path / "a") == run(crawl_folder, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_crawl_that_moved_is_the_same_and_one_that_changed_is_new(crawl_folder: Path, tmp_path: Path) -> None:
    first = run(crawl_folder, tmp_path / "ws")
    moved = crawl_folder.rename(tmp_path / "moved")
    assert run(moved, tmp_path / "ws") == first
    (moved / "new.jpg").write_bytes(encoded(photograph(99)))
    second = run(moved, tmp_path / "ws")
    assert second.crawl_id != first.crawl_id
    assert (second.records, second.accepted, second.rejected["duplicate"]) == (22, 1, 14)
    third = run(moved, tmp_path / "ws", image_size=32)
    assert third.accepted == 13


def test_a_crawl_without_images_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "crawl").mkdir()
    (tmp_path / "crawl" / "a.txt").write_text("a")
    assert run(tmp_path / "crawl", tmp_path / "ws").accepted == 0
    assert "no image was accepted" in capsys.readouterr().out


@pytest.mark.parametrize("passing", [True, False])
def test_a_source_that_is_gone_for_a_while_is_waited_for(
    passing: bool, crawl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path / "away"

    def plan_and_lose(records: Iterable[CrawlRecord], path: Path, *rest: Any) -> Plan:
        plan = write_plan(records, path, *rest)
        crawl_folder.rename(away)
        if passing:
            threading.Timer(0.7, away.rename, [crawl_folder]).start()
        return plan

    workspace = tmp_path / "ws"
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingest.stage.write_plan", plan_and_lose)
        if passing:
            assert run(crawl_folder, workspace).accepted == 12
            return
        with pytest.raises(StorageError) as caught:
            run(crawl_folder, workspace)
    error = user_error(caught.value)
    assert error is not None
    assert re.match(rf"cannot read {crawl_folder}/.*: No such file or directory; ", str(error))
    assert complete_crawls(LocalStorage(str(workspace)), "c") == []
    away.rename(crawl_folder)
    assert run(crawl_folder, workspace).accepted == 12


def test_a_file_that_vanishes_after_it_was_listed_is_one_row(
    crawl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan_and_lose(records: Iterable[CrawlRecord], path: Path, *rest: Any) -> Plan:
        plan = write_plan(records, path, *rest)
        (crawl_folder / "07.jpg").unlink()
        (crawl_folder / "new.jpg").write_bytes(encoded(photograph(99)))
        return plan

    monkeypatch.setattr("pipeline.ingest.stage.write_plan", plan_and_lose)
    crawl = run(crawl_folder, tmp_path / "ws")
    assert (crawl.records, crawl.accepted, crawl.rejected["missing_file"]) == (21, 11, 2)
    (row,) = (row for row in rows(tmp_path / "ws", crawl) if row["file_name"] == "07.jpg")
    assert (row["reason"], row["detail"]) == ("missing_file", "removed after the crawl was listed")


def test_no_column_of_any_row_keeps_a_password(tmp_path: Path) -> None:
    lines = [
        "url,caption,link,note",
        "ftp://u:pa/ss@a.test/1.jpg,a,ftp://u:pa/ss@a.test/1,ftp://v:pa/ss@b.test",
        "http://u:p-a-s-s@/x,b,http://w:p-a-s-s@c.test/2,see http://x:p-a-s-s@d.test and ?password=p-a-s-s&y=1",
        "/etc/u:pass,c,d,e",
    ]
    (tmp_path / "urls.csv").write_text("\n".join(lines))
    crawl = run(tmp_path / "urls.csv", tmp_path / "ws", url_column="url")
    found = rows(tmp_path / "ws", crawl)
    assert len(found) == 3
    assert crawl.accepted == 0
    assert "pa/ss" not in str(found)
    assert "p-a-s-s" not in str(found)
    assert "http://c.test/2" in str(found)


def test_totals_that_do_not_add_up_are_never_published(crawl_folder: Path, tmp_path: Path) -> None:
    crawl = run(crawl_folder, tmp_path / "ws")
    storage, paths = LocalStorage(str(tmp_path / "ws")), CrawlPaths("c", crawl.crawl_id)
    storage.delete(paths.marker)
    write_table(storage, paths.rows(4), read_table(storage, paths.rows(4)).slice(1))
    with pytest.raises(PipelineError, match=r"all 21 records; delete .* and ingest again"):
        run(crawl_folder, tmp_path / "ws")
    assert not storage.exists(paths.marker)


def test_impossible_sources_are_refused(crawl_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        run(tmp_path / "none", tmp_path / "ws")
    with pytest.raises(ConfigError, match="lies inside the source"):
        run(crawl_folder, crawl_folder / "ws")
    assert not (tmp_path / "ws").exists()


def test_a_sample_of_a_labelled_array_goes_all_the_way(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(40))
    form = {"color_mode": "grayscale", "image_format": "png"}
    crawl = run(tmp_path / "x.npz", tmp_path / "ws", sample=12, **form)
    assert (crawl.records, crawl.accepted, crawl.n_shards) == (12, 12, 3)
    storage, paths = LocalStorage(str(tmp_path / "ws")), CrawlPaths("c", crawl.crawl_id)
    for sample in (s for i in range(crawl.n_shards) for s in read_shard(storage, paths.shard(i))):
        assert np.array_equal(sample.pixels()[..., 0], images[int(sample.metadata["label"])])
    # The whole source: the images of the sample are known already.
    whole = run(tmp_path / "x.npz", tmp_path / "ws", source_type="npz", **form)
    assert (whole.accepted, whole.rejected) == (28, {"duplicate": 12})
    assert run(tmp_path / "x.npz", tmp_path / "ws", source_type="auto", **form) == whole
    with pytest.raises(SourceError, match="41 is above the 40 records"):
        run(tmp_path / "x.npz", tmp_path / "ws", sample=41)


def test_the_same_images_in_another_form_are_other_images(crawl_folder: Path, tmp_path: Path) -> None:
    forms: list[dict[str, Any]] = [{}, {"image_size": 8}, {"color_mode": "grayscale"}, {"image_format": "png"}]
    crawls = [run(crawl_folder, tmp_path / "ws", **form) for form in forms]
    assert [crawl.accepted for crawl in crawls] == [12 + ("image_size" in form) for form in forms]
    assert len({crawl.digest for crawl in crawls}) == 4


def test_hostile_sources_lose_no_record_and_write_nowhere_else(tmp_path: Path) -> None:
    images = {**PHOTOGRAPHS, **WHITE}
    traps = {name: data for name, (data, _) in REJECTED.items()}
    source = put(tmp_path / "in" / "crawl", {f"{name}.jpg": data for name, data in {**images, **traps}.items()})
    stray = os.fsdecode(b"\xff\xfe.jpg")
    put(
        source,
        {stray: encoded(photograph(2)), "\n\x1b[2J\u202e.jpg": encoded(photograph(3)), "notes.csv": b"url\0,\0\n\0"},
    )
    members = [("../../escape.jpg", encoded(photograph(4))), ("/absolute.jpg", encoded(photograph(5)))]
    deep = b"[" * 10_000 + b"]" * 10_000
    put(source / "sub", {"x.tar": tar(members), "deep.jpg": encoded(photograph(6)), "deep.jpg.json": deep})
    put(source / "sub", {"cut.jpg": encoded(photograph(7)), "cut.jpg.json": b'{"caption": "cut'})
    metadata = {"caption": MARKUP, "x": "y" * 10**6}
    put(source / "sub", {"markup.jpg": encoded(photograph(8)), "markup.jpg.json": json.dumps(metadata).encode()})
    (source / "sub" / "round").symlink_to(source, target_is_directory=True)
    (source / "loop.jpg").symlink_to("loop.jpg")
    (source / "out.jpg").symlink_to("/etc/passwd")
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "ws")}

    crawl = run(source, tmp_path / "ws", records_per_shard=16, keep_duplicates=True)
    table = rows(tmp_path / "ws", crawl)
    found = {row["file_name"]: row["reason"] or row["status"] for row in table}
    assert crawl.records == len(table) == len(images) + len(traps) + 10 + 2
    assert {name: found[f"{name}.jpg"] for name in images} == dict.fromkeys(images, "accepted")
    assert all(found[f"{name}.jpg"] in reasons for name, (_, reasons) in REJECTED.items())
    for name in ("escape", "absolute", "deep", "cut", "markup"):
        assert found[f"{name}.jpg"] == "accepted"
    assert (found["loop.jpg"], found["out.jpg"], found["notes.csv"]) == ("unreadable", "outside_source", "not_an_image")
    assert found["deep.jpg.json"] == found["cut.jpg.json"] == "broken_metadata"
    assert found[storable(stray)] == found["\n\x1b[2J\u202e.jpg"] == "accepted"
    (row,) = (row for row in table if row["file_name"] == "markup.jpg")
    assert row["caption"] == MARKUP
    storage, paths = LocalStorage(str(tmp_path / "ws")), CrawlPaths("c", crawl.crawl_id)
    samples = [s for i in range(crawl.n_shards) for s in read_shard(storage, paths.shard(i))]
    assert len(samples) == crawl.accepted
    assert MARKUP in [sample.metadata["caption"] for sample in samples]
    assert max(len(json.dumps(sample.metadata)) for sample in samples) < 40_000
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "ws")} == before
    assert not Path("/absolute.jpg").exists()


def test_images_bypass_the_driver_and_the_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = put(tmp_path / "crawl", {f"{i}.bmp": encoded(photograph(i, 300, 300), "BMP") for i in range(24)})
    sent: list[int] = []
    returned: list[Any] = []
    running = most = 0

    def task(work: Any) -> Any:
        remote = ray_task(work).remote

        def submit(*arguments: Any) -> Any:
            nonlocal running, most
            running += 1
            most = max(most, running)
            sent.append(len(cloudpickle.dumps(arguments)))
            return remote(*arguments)

        return SimpleNamespace(remote=submit)

    def watched(*arguments: Any) -> Iterator[tuple[Any, Any]]:
        nonlocal running
        for item, result in run_bounded(*arguments):
            running -= 1
            returned.append(result)
            yield item, result

    monkeypatch.setattr(stage, "ray_task", task)
    monkeypatch.setattr(stage, "run_bounded", watched)
    assert run(source, tmp_path / "ws", records_per_shard=2).accepted == 24
    assert returned == [2] * 12
    assert max(sent) < 10_000, "more than the records of a shard was sent; its images would be 540,000 bytes"
    assert most <= 4, "more tasks at once than twice the number of CPUs"
    sizes = [path.stat().st_size for path in (tmp_path / "ws").rglob("*.tar")]
    assert len(sizes) == 12
    assert max(sizes) < 20_000


def test_names_of_any_bytes_go_all_the_way(tmp_path: Path) -> None:
    (tmp_path / "crawl").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/crawl/\xff\xfe.jpg")).write_bytes(encoded(photograph(1)))
    assert run(tmp_path / "crawl", tmp_path / "ws").accepted == 1


def test_sources_of_every_layout_are_one_crawl_with_their_metadata(crawl_folder: Path, tmp_path: Path) -> None:
    put(tmp_path / "gallery", gallery_dl_dump())
    put(tmp_path / "loader", instaloader_dump())
    put(tmp_path / "tars", img2dataset_dump())
    put(tmp_path, {"packed.tgz": tar([(f"{i}.png", encoded(photograph(50 + i), "PNG")) for i in range(7)], "w:gz")})
    sources = [str(tmp_path / name) for name in ("loader", "tars", "packed.tgz", "gallery")] + [str(crawl_folder)]
    crawl = run(sources, tmp_path / "ws")
    assert crawl.records == 7 + 3 + 7 + 5 + 21
    found = {row["file_name"]: row for row in rows(tmp_path / "ws", crawl)}
    assert found["2020-09-13_12-26-40_UTC.jpg"]["shortcode"] == "single"
    assert json.loads(found["000000001.jpg"]["extra"])["original_width"] == 96
    assert found["6.png"]["status"] == "accepted"
    assert found["20_21.webp"]["shortcode"] == "post21"
    assert found["20_21.webp"]["status"] == "accepted"
    assert found["00.jpg"]["caption"] == "caption of 00.jpg #Trevi"
    assert read_json(LocalStorage(str(tmp_path / "ws")), CrawlPaths("c", crawl.crawl_id).marker)["source"] == sources
    failed = found[""]
    assert (failed["reason"], failed["detail"]) == ("missing_file", "img2dataset: HTTP Error 404: Not Found")
    assert run(sources, tmp_path / "ws") == crawl


def test_a_made_crawl_is_sorted_out_as_its_labels_say(tmp_path: Path) -> None:
    if not MAKE_CRAWL.exists():
        pytest.skip(f"{MAKE_CRAWL} does not exist")
    photos = MAKE_CRAWL.parents[1] / "data" / "photos"
    command = [
        sys.executable,
        str(MAKE_CRAWL),
        "--photos",
        str(photos),
        "--out",
        str(tmp_path),
        "--n",
        "120",
        "--seed",
        "7",
    ]
    subprocess.run(command, check=True, capture_output=True)
    crawl = run(tmp_path / "trevifountain", tmp_path / "ws", records_per_shard=32)
    with (tmp_path / "labels.csv").open(encoding="utf-8") as file:
        kinds = {row["file"]: row["kind"] for row in csv.DictReader(file)}
    found = {row["file_name"]: row["reason"] or row["status"] for row in rows(tmp_path / "ws", crawl)}
    assert found.keys() == kinds.keys()
    assert crawl.accepted + sum(crawl.rejected.values()) == crawl.records == 120
    for name, kind in kinds.items():
        if kind.startswith("bad:"):
            assert found[name] not in {"accepted", "duplicate"}, f"{name} ({kind})"
        else:
            assert found[name] in {"accepted", "duplicate"}, f"{name} ({kind})"
    assert Counter(found.values())["duplicate"] == Counter(kinds.values())["duplicate"]

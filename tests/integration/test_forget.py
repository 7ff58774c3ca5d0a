"""Takedown on a real local Ray: removed images are deleted everywhere in a collection, and stay out of later crawls."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs import cluster_collection
from pipeline.clustering.checkpoint import CheckpointWriter, load_checkpoint
from pipeline.clustering.snapshots import Snapshots, snapshots_of
from pipeline.clustering.sweep import open_run
from pipeline.config import JobConfig, load_config
from pipeline.errors import ConfigError, PipelineError, StorageError
from pipeline.ingest.forget.names import check_no_takedown
from pipeline.ingest.stage import ingest
from pipeline.orchestration.collection import run_collection
from pipeline.orchestration.forget import forget
from pipeline.orchestration.new_crawls import assign_collection
from pipeline.paths import CrawlPaths, RunPaths, forgotten_list
from pipeline.records import Crawl
from pipeline.reporting.assignment.new_crawl import assign_crawl
from pipeline.reporting.reported_runs import load_run
from pipeline.reporting.run import Run
from pipeline.reporting.stage import report
from pipeline.reporting.sync import sync_tracking
from pipeline.session import run_bounded
from pipeline.shards import complete_crawls, read_shard
from pipeline.storage import LocalStorage, read_json, read_table, write_json
from tests.support.crawl_files import encoded, node, photograph, write_metadata
from tests.support.http_server import Site, serving
from tests.support.made_collection import BLUE, RED, make_trial

pytestmark = pytest.mark.usefixtures("ray_cluster")


def content(number: float) -> bytes:
    """Return the file of a photograph; a fraction in `number` means a repost of it in another quality."""
    return encoded(photograph(int(number), 96, 96, details=24), quality=round(90 - 40 * (number % 1)))


def sha256(number: float) -> str:
    return hashlib.sha256(content(number)).hexdigest()


def image_id(number: float) -> str:
    return sha256(number)[:20]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """HTTP server that answers a path with the photograph whose number is the last part of the path."""
    with serving() as site:
        site.pages["/photo"] = lambda handler: handler.reply(200, content(float(handler.path.rpartition("/")[2])))
        yield site


def table_of(folder: Path, site: Site, name: str, *numbers: float) -> Path:
    """Write a table of URLs whose captions contain the names of the table and the photograph."""
    path = folder / f"{name}.csv"
    lines = [f"{site.url(f'/photo/{name}/{number}')},says {name}-{number}-\n" for number in numbers]
    path.write_text("url,caption\n" + "".join(lines))
    return path


def dump_of(folder: Path, *numbers: float) -> Path:
    """Write an instagram-scraper dump of the photographs `numbers`."""
    source = folder / "dump"
    source.mkdir()
    for number in numbers:
        (source / f"photo-{number}-.jpg").write_bytes(content(number))
    write_metadata(source, [node(f"photo-{number}-.jpg") for number in numbers])
    return source


def job(source: Path, workspace: Path, **values: Any) -> JobConfig:
    flags = {
        "collection": "c",
        "source": str(source),
        "workspace": str(workspace),
        "ingest.image_size": 16,
        "ingest.records_per_shard": 2,
        "ingest.http.allow_private_hosts": True,
        "ingest.http.rounds": 1,
        "clustering.k": [2],
        "clustering.transforms": ["color"],
        "reporting.strip_images": 2,
        "reporting.tile_px": 32,
        **values,
    }
    return load_config(None, flags, [])


def run(source: Path, workspace: Path, **values: Any) -> Crawl:
    return ingest(LocalStorage(str(workspace)), job(source, workspace, **values))


def unwanted(folder: Path, *entries: str) -> Path:
    path = folder / "unwanted.txt"
    path.write_text("".join(f"{entry}\n" for entry in entries))
    return path


def rows(workspace: Path, crawl: Crawl) -> list[dict[str, Any]]:
    """Return all rows of a crawl, after checking that they agree with its tars and its marker."""
    storage, paths = LocalStorage(str(workspace)), CrawlPaths("c", crawl.crawl_id)
    found = [read_table(storage, paths.rows(index)).to_pylist() for index in range(crawl.n_shards)]
    for index, part in enumerate(found):
        in_tar = [sample.image_id for sample in read_shard(storage, paths.shard(index))]
        assert in_tar == [row["image_id"] for row in part if row["status"] == "accepted"]
    everything = [row for part in found for row in part]
    (now,) = [other for other in complete_crawls(storage, "c") if other.crawl_id == crawl.crawl_id]
    assert now.accepted + sum(now.rejected.values()) == now.records == len(everything) == crawl.records
    assert now.accepted == sum(row["status"] == "accepted" for row in everything)
    assert now.rejected == Counter(row["reason"] for row in everything if row["reason"])
    assert (now.n_shards, now.image_form) == (crawl.n_shards, crawl.image_form)
    return everything


def outcomes(workspace: Path, crawl: Crawl) -> list[str]:
    return [row["reason"] or row["status"] for row in rows(workspace, crawl)]


def everywhere(workspace: Path) -> dict[str, str]:
    """Return the contents of all files of the workspace, also hidden ones, except the list of removed images."""
    contents = {}
    for path in workspace.rglob("*"):
        if path.is_file() and path != workspace / forgotten_list("c"):
            name, data = str(path.relative_to(workspace)), path.read_bytes()
            contents[name] = (
                str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else data.decode("latin-1")
            )
    return contents


def assert_nowhere(workspace: Path, *words: str) -> None:
    contents = everywhere(workspace)
    assert [(word, name) for word in words for name, text in contents.items() if word in text] == []


@dataclass(frozen=True)
class Collection:
    workspace: Path
    dump: Path
    table: Path
    crawls: tuple[Crawl, Crawl]
    paths: RunPaths


@pytest.fixture(scope="module")
def reported(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """A collection of two crawls with reposts, with a report and assignments."""
    folder = tmp_path_factory.mktemp("reported")
    workspace = folder / "ws"
    dump = dump_of(folder, 30, 31, 32, 33, 34, 35, 35.5)
    table = table_of(folder, site, "table", 10, 11, 31, 10, 32.5, 12)
    crawls = run(dump, workspace), run(table, workspace)
    assert outcomes(workspace, crawls[0]) == ["accepted"] * 6 + ["near_duplicate"]
    assert sorted(outcomes(workspace, crawls[1])) == ["accepted"] * 3 + ["duplicate"] * 2 + ["near_duplicate"]
    storage, config = LocalStorage(str(workspace)), job(dump, workspace)
    paths = open_run(storage, config, list(crawls))
    result = make_trial(storage, paths, config.clustering, [RED, BLUE])
    write_json(storage, paths.trial_marker(result.trial.name), result.to_json())
    checkpoint = paths.checkpoint(result.trial.name)
    snapshots = Snapshots()
    snapshots.take(torch.rand(2, 3, 16, 16), 0, 0, [])  # prototypes start from photos
    state = load_checkpoint(storage, checkpoint) | {"snapshots": snapshots.state()}
    CheckpointWriter(storage, checkpoint, print).finish(state)
    report(storage, Run(paths.run_id, config, list(crawls), [result], result, "the only K"))
    run_again = load_run(storage, "c", paths.run_id)
    for crawl in crawls:
        assign_crawl(storage, run_again, crawl, examples=True)
    return Collection(workspace, dump, table, crawls, paths)


@pytest.fixture
def collection(reported: Collection) -> Iterator[Collection]:
    """The collection in its initial state, at its original path, because reports and MLflow keep absolute paths."""
    workspace, kept = reported.workspace, reported.workspace.with_name("kept")
    shutil.copytree(workspace, kept)
    yield reported
    for folder in ("c", "mlartifacts"):
        shutil.rmtree(workspace / folder)
    shutil.copytree(kept, workspace, dirs_exist_ok=True)  # MLflow keeps its database open
    shutil.rmtree(kept)


def test_removed_images_are_nowhere_in_the_workspace(
    collection: Collection, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, (first, second) = collection.workspace, collection.crawls
    storage = LocalStorage(str(workspace))
    entries = {
        # Reposted under a URL.
        image_id(31): ["photo-31-.jpg", "says table-31-", "/photo/table/31"],
        # Posted twice.
        site.url("/photo/table/10"): [image_id(10), "says table-10-", "/photo/table/10"],
        # The repost of another image.
        sha256(32.5): [image_id(32), "photo-32-.jpg", "says table-32.5-", "/photo/table/32.5"],
        # The URL from which the scraper downloaded it; it was read from a file.
        "https://cdn.example/a/photo-35-.jpg": [image_id(35), "photo-35-.jpg", "photo-35.5-.jpg"],
    }
    words = [*entries, *(word for of_image in entries.values() for word in of_image)]
    contents = everywhere(workspace).values()
    assert all(any(word in text for text in contents) for word in words)
    assert getattr(Image.open(workspace / collection.paths.timelapse), "n_frames", 1) == 2
    file = unwanted(tmp_path, *entries, "9" * 20)
    lines = forget(storage, "c", file)

    assert_nowhere(workspace, *words)
    kept, gone = "accepted", "forgotten"
    assert outcomes(workspace, first) == [kept, gone, gone, kept, kept, gone, gone]
    assert outcomes(workspace, second) == [gone, kept, gone, gone, gone, kept]
    cleared = [row for crawl in collection.crawls for row in rows(workspace, crawl) if row["reason"] == gone]
    assert {name for row in cleared for name, value in row.items() if value is not None} == {
        "record", "status", "reason", "detail",
    }  # fmt: skip
    listed = str(read_table(storage, forgotten_list("c")).to_pylist())
    assert not [word for word in words if len(word) not in {20, 64} and word in listed]

    document = read_json(storage, collection.paths.marker)
    assert document["counts"]["assigned"] == 5
    assert document["tracking"]["error"] is None
    clusters = read_table(storage, collection.paths.clusters)
    assert sorted(clusters["image_id"].to_pylist()) == sorted(map(image_id, (30, 33, 34, 11, 12)))
    assert len(list(workspace.glob("mlartifacts/c/*/artifacts/clusters.csv"))) == 1
    assert not list(workspace.rglob("forgetting.json"))
    assert not list(workspace.glob("c/runs/*/assignments/**/*.*"))
    assert not snapshots_of(load_checkpoint(storage, collection.paths.checkpoint("k=2-seed=0")))
    timelapse = Image.open(workspace / collection.paths.timelapse)
    assert getattr(timelapse, "n_frames", 1) == 1

    out = capsys.readouterr().out
    assert f"crawl {first.crawl_id}: 3 images removed, 1 further record cleared; 7 records: 3 accepted" in out
    assert f"crawl {second.crawl_id}: 1 image removed, 3 further records cleared; 6 records: 2 accepted" in out
    assert out.count("matched nothing") == out.count("unwanted.txt, line 5: matched nothing") == 1
    assert lines[0].startswith("forgotten 4 images; ")
    assert lines[1].startswith("models    those of earlier runs have learned from these images")

    forget(storage, "c", file)
    out = capsys.readouterr().out
    assert not [word for word in ("removed", "reported again", "matched nothing") if word in out]


def test_assignments_without_removed_images_are_kept(collection: Collection, site: Site, tmp_path: Path) -> None:
    forget(LocalStorage(str(collection.workspace)), "c", unwanted(tmp_path, image_id(30)))
    assigned = {path.parent.name for path in collection.workspace.glob("c/runs/*/assignments/*/assignment.json")}
    assert assigned == {collection.crawls[1].crawl_id}


def test_later_crawls_do_not_add_removed_images(collection: Collection, site: Site, tmp_path: Path) -> None:
    workspace, (first, second) = collection.workspace, collection.crawls
    storage = LocalStorage(str(workspace))
    forget(storage, "c", unwanted(tmp_path, image_id(31), site.url("/photo/table/10")))
    words = ["photo-31-.jpg", "/photo/table/31", "/photo/table/10", image_id(31), image_id(10)]

    digests = {crawl.crawl_id: crawl.digest for crawl in complete_crawls(storage, "c")}
    assert run(collection.dump, workspace).digest == digests[first.crawl_id]
    before = [rows(workspace, crawl) for crawl in (first, second)]
    for crawl, source in zip((first, second), (collection.dump, collection.table), strict=True):
        storage.delete(CrawlPaths("c", crawl.crawl_id).marker)
        assert run(source, workspace).crawl_id == crawl.crawl_id
    assert [rows(workspace, crawl) for crawl in (first, second)] == before
    assert_nowhere(workspace, *words)

    for crawl, source in zip((first, second), (collection.dump, collection.table), strict=True):
        for key in storage.list(CrawlPaths("c", crawl.crawl_id).folder):
            storage.delete(key)
        site.seen.clear()
        assert run(source, workspace).crawl_id == crawl.crawl_id
    assert {"/photo/table/10", "/photo/table/31"}.isdisjoint(site.hits())
    assert [outcomes(workspace, crawl) for crawl in (first, second)] == [
        [row["reason"] or row["status"] for row in part] for part in before
    ]
    assert_nowhere(workspace, *words)

    new = run(table_of(tmp_path, site, "again", 31, 10, 13), workspace)
    assert outcomes(workspace, new) == ["forgotten", "forgotten", "accepted"]
    keeping = run(table_of(tmp_path, site, "keeping", 31, 14, 14.0), workspace, **{"ingest.keep_duplicates": True})
    assert outcomes(workspace, keeping) == ["forgotten", "accepted", "accepted"]
    assert_nowhere(workspace, *words, "says again-31-", "/photo/again/31", "says again-10-", "says keeping-31-")


def test_a_report_without_images_is_deleted(
    collection: Collection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = collection.workspace
    everything = [*map(image_id, (30, 31, 32, 33, 34, 35, 10, 11, 12))]
    forget(LocalStorage(str(workspace)), "c", unwanted(tmp_path, *everything))
    assert_nowhere(workspace, *everything)
    assert "no image is left, so its report is deleted" in capsys.readouterr().out
    left = {path.name for path in workspace.glob("c/runs/*/**/*") if path.is_file()}
    assert left == {"config.yaml", "identity.json", "tracked.json", "checkpoint.pt", "trial.json"}
    assert not list(workspace.glob("mlartifacts/c/*/artifacts"))


def test_a_report_that_cannot_be_made_again_is_deleted_nevertheless(collection: Collection, tmp_path: Path) -> None:
    storage = LocalStorage(str(collection.workspace))
    storage.delete(collection.paths.checkpoint("k=2-seed=0"))
    file = unwanted(tmp_path, image_id(31))
    for _ in range(2):
        with pytest.raises(PipelineError, match=rf"1 report could not be made again \({collection.paths.run_id}\)"):
            forget(storage, "c", file)
        assert_nowhere(collection.workspace, image_id(31), "photo-31-.jpg")
        assert not storage.exists(collection.paths.marker)


def test_tracked_runs_must_be_deleted(collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, file = LocalStorage(str(collection.workspace)), unwanted(tmp_path, image_id(31))
    with pytest.raises(StorageError, match=r"http://127\.0\.0\.1:9: the records of run run-.* cannot be deleted"):
        forget(storage, "c", file, "http://127.0.0.1:9")
    assert not storage.exists(collection.paths.marker)
    forget(storage, "c", file)
    assert storage.exists(collection.paths.marker)
    assert_nowhere(collection.workspace, image_id(31), "photo-31-.jpg")


def test_a_run_is_deleted_wherever_it_was_recorded(collection: Collection, tmp_path: Path) -> None:
    storage, other = LocalStorage(str(collection.workspace)), f"sqlite:///{tmp_path}/other.db"
    sync_tracking(storage, load_config(None, {"collection": "c", "tracking_uri": other, "stages": ["cluster"]}, []))
    recorded = list(collection.workspace.glob("mlartifacts/c/*/artifacts/clusters.csv"))
    assert len(recorded) == 2
    forget(storage, "c", unwanted(tmp_path, image_id(31)))
    assert_nowhere(collection.workspace, image_id(31), "photo-31-.jpg", "says table-31-")
    assert read_json(storage, collection.paths.marker)["tracking"]["uri"] == other


def test_images_are_removed_from_mlflow_in_a_moved_workspace(collection: Collection, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(collection.workspace, moved)
    forget(LocalStorage(str(moved)), "c", unwanted(tmp_path, image_id(31)))
    assert_nowhere(moved, image_id(31), "photo-31-.jpg", "says table-31-")
    assert read_json(LocalStorage(str(moved)), collection.paths.marker)["tracking"]["uri"].startswith(
        f"sqlite:///{moved}"
    )


def test_partial_writes_are_deleted(collection: Collection, tmp_path: Path) -> None:
    part = collection.workspace / CrawlPaths("c", collection.crawls[0].crawl_id).shards / ".shard-000000.tar.0.part"
    part.write_text("photo-31-.jpg")
    forget(LocalStorage(str(collection.workspace)), "c", unwanted(tmp_path, image_id(31)))
    assert_nowhere(collection.workspace, "photo-31-.jpg")


def test_other_jobs_are_refused_until_an_interrupted_takedown_is_complete(
    collection: Collection, tmp_path: Path
) -> None:
    storage, file = LocalStorage(str(collection.workspace)), unwanted(tmp_path, image_id(31))
    with pytest.raises(KeyboardInterrupt):
        forget(Dying(storage.root, 4), "c", file)
    config = job(collection.dump, collection.workspace)
    with pytest.raises(ConfigError, match="--forget is running or was interrupted"):
        run_collection(storage, config, lambda works: None)
    with pytest.raises(ConfigError, match="--forget is running or was interrupted"):
        assign_collection(storage, config, "latest", [])
    forget(storage, "c", unwanted(tmp_path, image_id(1)))
    assert_nowhere(collection.workspace, image_id(31), "photo-31-.jpg")
    check_no_takedown(storage, "c")


class Dying(LocalStorage):
    """Storage that raises KeyboardInterrupt in the driver at the nth write or deletion, but not in its tasks."""

    def __init__(self, root: str, n: int) -> None:
        super().__init__(root)
        self.left = n

    def __reduce__(self) -> Any:
        return LocalStorage, (self.root,)

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def write_bytes(self, key: str, data: bytes) -> None:
        self._count()
        super().write_bytes(key, data)

    def publish(self, path: Path, key: str) -> None:
        self._count()
        super().publish(path, key)

    def delete(self, key: str) -> None:
        self._count()
        super().delete(key)


def test_the_same_command_continues_wherever_it_was_killed(site: Site, tmp_path: Path) -> None:
    source = table_of(tmp_path, site, "killed", 20, 21, 20, 22)
    crawl = run(source, tmp_path / "crawled")
    file = unwanted(tmp_path, image_id(20))
    deaths = 0
    while True:
        workspace = tmp_path / f"ws-{deaths}"
        shutil.copytree(tmp_path / "crawled", workspace)
        try:
            forget(Dying(str(workspace), deaths), "c", file)
            break
        except KeyboardInterrupt:
            deaths += 1
        for found in complete_crawls(LocalStorage(str(workspace)), "c"):
            assert outcomes(workspace, found) in (
                ["accepted", "accepted", "duplicate", "accepted"],
                ["forgotten", "accepted", "forgotten", "accepted"],
            )
        forget(LocalStorage(str(workspace)), "c", file)
        assert outcomes(workspace, crawl) == ["forgotten", "accepted", "forgotten", "accepted"]
        assert_nowhere(workspace, image_id(20), "says killed-20-", "/photo/killed/20")
        assert not list(workspace.rglob("forgetting.json"))
    # Writes and deletions of the driver: takedown marker, list, copy of the crawl's marker, deletion of that marker,
    # duplicates, plan, new marker, deletion of the copy, deletion of the takedown marker.
    assert deaths == 9


def test_a_job_that_was_killed_between_two_shards_continues(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_alone(submit: Any, items: Any) -> Iterator[Any]:
        todo = list(items)
        yield from run_bounded(submit, todo[:1] if isinstance(todo[0], int) else todo)
        if isinstance(todo[0], int):
            raise KeyboardInterrupt

    storage, file = LocalStorage(str(collection.workspace)), unwanted(tmp_path, image_id(30), image_id(33))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.ingest.forget.removal.run_bounded", first_alone)
        forget(storage, "c", file)
    paths = CrawlPaths("c", collection.crawls[0].crawl_id)
    assert [read_table(storage, paths.rows(index))["reason"].to_pylist()[index] for index in (0, 1)] == [
        "forgotten",
        None,
    ]
    assert collection.crawls[0].crawl_id not in [crawl.crawl_id for crawl in complete_crawls(storage, "c")]
    forget(storage, "c", file)
    assert outcomes(collection.workspace, collection.crawls[0]).count("forgotten") == 2
    assert_nowhere(collection.workspace, image_id(30), image_id(33), "photo-30-.jpg", "photo-33-.jpg")


def test_a_report_that_was_interrupted_is_made_again(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    storage, file = LocalStorage(str(collection.workspace)), unwanted(tmp_path, image_id(30))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.reporting.stage.write_clusters_csv", killed)
        forget(storage, "c", file)
    assert not storage.exists(collection.paths.marker)
    forget(storage, "c", file)
    assert read_json(storage, collection.paths.marker)["counts"]["assigned"] == 8
    assert_nowhere(collection.workspace, image_id(30), "photo-30-.jpg")


def test_images_are_removed_from_an_incomplete_crawl(site: Site, tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    storage = LocalStorage(str(workspace))
    source = table_of(tmp_path, site, "begun", 20, 21, 22, 23, 20)
    crawl = run(source, workspace)
    paths = CrawlPaths("c", crawl.crawl_id)
    for key in (paths.marker, paths.rows(1), paths.rows(2)):  # shard 1 then has a tar without rows
        storage.delete(key)
    forget(storage, "c", unwanted(tmp_path, image_id(20), site.url("/photo/begun/22")))
    assert_nowhere(workspace, image_id(20), "says begun-22-", image_id(22))
    assert not storage.exists(paths.marker)
    assert run(source, workspace).crawl_id == crawl.crawl_id
    assert outcomes(workspace, crawl) == ["forgotten", "accepted", "forgotten", "accepted", "forgotten"]
    assert_nowhere(workspace, image_id(20), "says begun-20-", "says begun-22-", image_id(22))


def test_the_url_of_a_post_does_not_identify_one_of_its_images(tmp_path: Path) -> None:
    source = tmp_path / "crawl"
    source.mkdir()
    for number in (1, 2, 3):
        (source / f"{number}.jpg").write_bytes(content(number))
        post = "one" if number < 3 else "other"
        (source / f"{number}.jpg.json").write_text(f'{{"category": "x", "url": "https://photos.example/p/{post}"}}')
    workspace = tmp_path / "ws"
    crawl = run(source, workspace)
    assert len({row["source_url"] for row in rows(workspace, crawl)}) == 2
    forget(LocalStorage(str(workspace)), "c", unwanted(tmp_path, image_id(1), image_id(3)))
    assert outcomes(workspace, crawl) == ["forgotten", "accepted", "forgotten"]
    listed = read_table(LocalStorage(str(workspace)), forgotten_list("c"))["name"].to_pylist()
    names = [
        hashlib.sha256(f"https://photos.example/p/{post}".encode()).hexdigest() in listed for post in ("one", "other")
    ]
    assert names == [False, True]


@pytest.mark.parametrize(("collection_name", "entry"), [("c", "nonsense"), ("typo", "0" * 20)])
def test_a_refused_takedown_changes_nothing(collection_name: str, entry: str, tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    run(dump_of(tmp_path, 1), workspace)
    before = everywhere(workspace)
    with pytest.raises(ConfigError, match=r"line 1: expected|no crawl"):
        forget(LocalStorage(str(workspace)), collection_name, unwanted(tmp_path, entry))
    assert everywhere(workspace) == before
    assert not (workspace / "typo").exists()


@pytest.mark.parametrize("flags", [["--source", "x"], ["--stages", "ingest"], ["--manifest", "x.csv"]])
def test_a_takedown_runs_no_stage(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["cluster_collection.py", "--collection", "c", "--forget", "x.txt", *flags])
    with pytest.raises(
        ConfigError, match="--forget: --forget and --sync-tracking work on one collection and run no stage"
    ):
        cluster_collection.main()


@pytest.mark.slow
def test_the_command_reports_what_it_did(tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    run(dump_of(tmp_path, 1, 2), workspace)
    command = [sys.executable, "jobs/cluster_collection.py", "--collection", "c", "--workspace", str(workspace)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

    def run_takedown(entry: str) -> tuple[int, list[str], list[str]]:
        done = subprocess.run(
            [*command, "--forget", str(unwanted(tmp_path, entry))],
            cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()

    code, _, err = run_takedown("nonsense")
    assert (code, len(err)) == (2, 1), err
    assert err[0].startswith(f"error: --forget {tmp_path}/unwanted.txt, line 1: expected an image id")
    code, out, err = run_takedown(image_id(1))
    assert (code, err) == (0, [])
    assert out[-2].startswith("forgotten 1 image; ")
    assert_nowhere(workspace, image_id(1), "photo-1-.jpg")

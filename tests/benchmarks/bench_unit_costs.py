"""Unit costs of an image, a trial and a call, from which infra/SCALE.md calculates the needs of large clusters.

    python tests/benchmarks/bench_unit_costs.py [--parts step,assign,load,checkpoint,queue,driver,ray,track,requests]
        [--json FILE]

`step`, `assign`, `load`, `driver` and `track` measure processor time of one thread, because other programs on the
machine change it least. `requests` counts the requests of a small job to a local S3 server.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script, this file can only import from its own folder

from pipeline.clustering.checkpoint import CheckpointWriter, load_method, model_state
from pipeline.clustering.data.images import decode_shard
from pipeline.clustering.model.build import build_method
from pipeline.clustering.trial import HistoryPoint, StageRecord, Trial, TrialResult, TrialTask
from pipeline.clustering.trial_queue import TrialQueue
from pipeline.config import ClusteringConfig, IngestConfig, JobConfig
from pipeline.ingest.images import decode_square, encode
from pipeline.paths import CrawlPaths, RunPaths
from pipeline.records import Crawl
from pipeline.shards import Sample, publish_shard
from pipeline.storage import LocalStorage, write_table
from tests.benchmarks.bench_step import smooth_pictures

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared/data/photos"
SIZE = 128
BATCH = 64
KS = (8, 16, 32)
STAGES = {"color": (0, False), "color+projective": (1, False), "color+projective+variances": (1, True)}
"""Number of predicted modules, and whether variances are learned, by stage."""
UNIT_OF_FOLDER = {"/shards/": "shard", "/trials/": "trial", "/clusters/": "cluster"}
"""Unit that an S3 request belongs to, by a part of the key."""
Row = dict[str, Any]


def measure_step() -> list[Row]:
    """Measure a training iteration by K and stage: 128 px, batch 64, dti-gmm.

    The values of K alternate, so that a busy minute of the machine does not affect only one of them.
    """
    batch = smooth_pictures(2 * BATCH, 3, SIZE, SIZE)[:BATCH]
    models = {k: build_method(ClusteringConfig(k=[k]), batch[:k], seed=0) for k in KS}
    optimizers = {k: torch.optim.Adam(model.parameters(), lr=1e-3, fused=True) for k, model in models.items()}

    def step(k: int) -> None:
        optimizers[k].zero_grad(set_to_none=True)
        models[k].loss(batch).loss.backward()
        optimizers[k].step()

    rows = []
    for stage, (predicted, learn_variances) in STAGES.items():
        for model in models.values():
            model.activate(predicted, learn_variances)
        fastest = {k: min(rounds) for k, rounds in _in_turn(step).items()}
        rows += [{"k": k, "stage": stage, "core_s_per_iteration": round(fastest[k], 3)} for k in KS]
    return rows


def _in_turn(work: Callable[[int], object], rounds: int = 5) -> dict[int, list[float]]:
    """Return the processor seconds of `work` for every K, in each of `rounds` rounds after one to warm up."""
    seconds: dict[int, list[float]] = {k: [] for k in KS}
    for number in range(rounds + 1):
        for k in KS:
            started = time.process_time()
            work(k)
            if number:
                seconds[k].append(time.process_time() - started)
    return seconds


@torch.no_grad()
def measure_assign() -> list[Row]:
    """Measure the assignment of an image by K, with all modules active and without screening."""
    images = smooth_pictures(BATCH, 3, SIZE, SIZE)
    models = {k: build_method(ClusteringConfig(k=[k]), images[:k], seed=0) for k in KS}
    for model in models.values():
        model.activate(1, learn_variances=True)
        model.eval()
    fastest = {k: min(rounds) for k, rounds in _in_turn(lambda k: models[k].assign(images)).items()}
    return [
        {"k": k, "images_per_core_s": round(BATCH / fastest[k], 1), "core_ms_per_image": 1e3 * fastest[k] / BATCH}
        for k in KS
    ]


def measure_load() -> list[Row]:
    """Measure a shard of 256 crops of photographs: bytes per image in the tar and decoded, and the time of decoding."""
    config = IngestConfig(image_size=SIZE)
    photos = [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))]
    if not photos:
        sys.exit(f"load needs photographs in {PHOTOS}, but there are none")
    crops = [encode(decode_square(data, config).pixels, "jpeg", config.jpeg_quality) for data in photos]
    samples = [Sample(f"{i:032x}", crops[i % len(crops)], {"caption": "x" * 200, "width": 1080}) for i in range(256)]
    with tempfile.TemporaryDirectory() as folder:
        storage = LocalStorage(folder)
        publish_shard(storage, "shard.tar", samples)
        seconds = min(map(min, _in_turn(lambda k: decode_shard(storage, "shard.tar")).values()))
        size = (Path(folder) / "shard.tar").stat().st_size
    row = {"tar_bytes_per_image": size / 256, "decoded_bytes_per_image": 3 * SIZE**2}
    return [{**row, "images_per_core_s": 256 / seconds, "core_ms_per_image": 1e3 * seconds / 256}]


def measure_checkpoint() -> list[Row]:
    """Measure checkpoints by K: size in training (with Adam's moments), size when done, and time to read the latter."""
    rows = []
    for k in KS:
        config = ClusteringConfig(k=[k])
        model = build_method(config, torch.rand(k, 3, SIZE, SIZE), seed=0)
        model.activate(1, learn_variances=True)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        model.loss(torch.rand(4, 3, SIZE, SIZE)).loss.backward()
        optimizer.step()
        with tempfile.TemporaryDirectory() as folder:
            storage = LocalStorage(folder)
            for name, state in (("done", None), ("training", optimizer.state_dict())):
                CheckpointWriter(storage, name, print).finish({**model_state(model, config), "optimizer": state})
            row: Row = {f"{name}_MB": round(len(storage.read_bytes(name)) / 1e6, 1) for name in ("done", "training")}
            started = time.process_time()
            load_method(storage, "done")
            rows.append({"k": k, **row, "read_core_s": round(time.process_time() - started, 2)})
    return rows


def make_tasks(n: int, shards: int = 40) -> list[TrialTask]:
    """Return `n` trials, three per collection."""
    storage, config = LocalStorage("/workspace"), ClusteringConfig()
    return [
        TrialTask(
            storage,
            RunPaths(f"collection-{i // 3:06d}", "run-0123456789ab"),
            config,
            Trial(KS[i % 3], 0),
            [f"collection-{i // 3:06d}/crawls/0123456789ab/shards/shard-{j:06d}.tar" for j in range(shards)],
            shards * 256 * 3 * SIZE**2,
        )
        for i in range(n)
    ]


def measure_queue() -> list[Row]:
    """Measure calls of the TrialQueue, without an actor, in microseconds by the number of waiting trials."""
    rows = []
    for waiting in (100, 10_000, 30_000):
        queue = TrialQueue()
        queue.add(make_tasks(waiting, shards=1))
        more = make_tasks(300, shards=1)
        row: Row = {"waiting": waiting}
        for name, call in (("add", _add), ("take and finish", _finish), ("take and release", _release)):
            started = time.process_time()
            for i in range(100):
                call(queue, more[3 * i : 3 * i + 3])
            row[f"{name}, us"] = round(1e4 * (time.process_time() - started), 1)
        rows.append(row)
    return rows


def _add(queue: TrialQueue, more: list[TrialTask]) -> None:
    queue.add(more)


def _finish(queue: TrialQueue, _: list[TrialTask]) -> None:
    queue.take("group")
    queue.finish("group", 0.0, 0, 0.0)


def _release(queue: TrialQueue, _: list[TrialTask]) -> None:
    queue.take("group")
    queue.release("group")


def measure_driver() -> list[Row]:
    """Measure the work of the driver for a crawl of 10,240 images, and the size of a row of the shards' tables."""
    from pipeline.ingest.accounting import account
    from pipeline.ingest.repeats.dedup import find_repeats, known_images
    from pipeline.ingest.repeats.near_duplicates import SIGNATURE_BYTES
    from pipeline.records import SHARD_SCHEMA
    from pipeline.reporting.pictures.mosaic import Tile, draw_mosaic
    from pipeline.reporting.pixels import png
    from pipeline.reporting.tables.manifest import clusters_schema, clusters_table

    noise, shards, config = np.random.default_rng(0), 40, IngestConfig(image_size=SIZE)
    paths, images = CrawlPaths("collection", "0123456789ab"), 40 * 256
    rows = [_accepted_row(i, noise.bytes(SIGNATURE_BYTES), noise.bytes(32).hex()) for i in range(images)]
    with tempfile.TemporaryDirectory() as folder:
        storage = LocalStorage(folder)
        for index in range(shards):
            table = pa.Table.from_pylist(rows[256 * index : 256 * index + 256], SHARD_SCHEMA)
            write_table(storage, paths.rows(index), table)
        size = sum(Path(storage.uri(paths.rows(index))).stat().st_size for index in range(shards))
        found: list[Row] = [{"what": "row of a shard's table", "bytes": round(size / images)}]
        schema = clusters_schema(ClusteringConfig())
        columns = {field.name: pa.nulls(images, field.type) for field in schema}
        columns |= {"cluster": pa.array(noise.integers(0, 16, images), pa.int32())}
        columns |= {name: pa.array([row[name] for row in rows]) for name in ("image_id", "source_uri", "caption")}
        part = pa.table([columns[name] for name in schema.names], schema=schema)
        picture = noise.integers(0, 255, (SIZE, SIZE, 3), np.uint8)
        tiles = [Tile(i, 640, 1 / 16, picture) for i in range(16)]
        for what, work in (
            (
                "find duplicates",
                lambda: find_repeats(storage, paths, shards, known_images(storage, [], config), [], config),
            ),
            ("count records", lambda: account(storage, paths, images, shards, config)),
            ("table of clusters", lambda: write_table(storage, "clusters.parquet", clusters_table([part], schema))),
            ("mosaic of 16", lambda: png(draw_mosaic("collection", "16 prototypes", tiles, SIZE))),
        ):
            started = time.process_time()
            work()
            found.append({"what": what, "core_s": round(time.process_time() - started, 2)})
    return found


def _accepted_row(i: int, signature: bytes, sha256: str) -> Row:
    """Return the row of an accepted image, as long as the rows of scraped posts."""
    return {
        "record": i,
        "source_uri": f"https://photos.example/{sha256[:40]}.jpg",
        "file_name": f"{sha256[:40]}.jpg",
        "caption": f"{sha256} " * 3,
        "fingerprint": f"https://photos.example/{sha256[:40]}.jpg",
        "status": "accepted",
        "image_id": sha256[:32],
        "look": signature,
        "sha256": sha256,
        "bytes": 100_000 + i,
        "stored_bytes": 12_000 + i % 999,
        "format": "JPEG",
        "width": 1080,
        "height": 1080 + i % 300,
    }


def measure_ray() -> list[Row]:
    """Measure calls of a queue in an actor, one by one and many at once, and tasks, all from one driver."""
    import ray

    from pipeline.session import connect_ray, run_bounded

    connect_ray()
    actor = ray.remote(TrialQueue).options(num_cpus=0).remote()
    ray.get(actor.add.remote(make_tasks(3000)))
    for i in range(512):
        ray.get(actor.take.remote(f"group-{i}"))
    noop = ray.remote(num_cpus=1)(lambda: None)
    ray.get([noop.remote() for _ in range(4)])
    many = 500

    def call(i: int) -> Any:
        return actor.release.remote(f"nobody-{i}")

    rows = []
    for name, work in (
        ("actor call, one after the other", lambda: [ray.get(call(i)) for i in range(many)]),
        ("actor call, many at once", lambda: ray.get([call(i) for i in range(many)])),
        ("take of a trial with 40 shard keys", lambda: [ray.get(actor.take.remote(f"g{i}")) for i in range(many)]),
        ("update, 512 trials running", lambda: [ray.get(actor.update.remote()) for _ in range(many)]),
        ("task of run_bounded", lambda: list(run_bounded(lambda i: noop.remote(), range(many)))),
    ):
        wall, processor = time.monotonic(), time.process_time()
        work()
        wall, processor = time.monotonic() - wall, time.process_time() - processor
        rows.append({"what": name, "per_s": round(many / wall), "driver_processor_us": round(1e6 * processor / many)})
    ray.shutdown()
    return rows


def measure_track() -> list[Row]:
    """Measure recording a run in MLflow with SQLite: three trials of 36 windows, and the model of the first trial."""
    from pipeline.reporting.run import Run
    from pipeline.reporting.tracking.runs import track_run

    point = HistoryPoint(60, 1.0, 1e-3, 1, 0, 0.5, 0.1)
    history = [HistoryPoint(**{**vars(point), "iteration": 60 * (i + 1)}) for i in range(36)]
    results = [
        TrialResult(k, 0, 1.0, 2160, 138240, 60.0, 1, [StageRecord([], 600, "converged")], history, []) for k in KS
    ]
    document = {"created_at": "", "versions": {}, "trials": [{"metrics": None} for _ in results]}
    with tempfile.TemporaryDirectory() as folder:
        storage = LocalStorage(folder)
        rows = []
        for i in range(4):
            config = JobConfig(collection=f"c{i}", source="/crawl", workspace=folder)
            model = build_method(config.clustering, torch.rand(KS[0], 3, SIZE, SIZE), seed=0)
            checkpoint = RunPaths(f"c{i}", f"run-{i}").checkpoint(results[0].trial.name)
            CheckpointWriter(storage, checkpoint, print).finish(model_state(model, config.clustering))
            crawl = Crawl(f"c{i}", "crawl", 1, 256, 256, {}, SIZE, "digest")
            run = Run(f"run-{i}", config, [crawl], results, results[0], "", document)
            started, processor = time.monotonic(), time.process_time()
            found = track_run(storage, run, [])
            row = {"s": round(time.monotonic() - started, 2), "core_s": round(time.process_time() - processor, 2)}
            if found.error:
                sys.exit(found.error)
            size = sum(path.stat().st_size for path in Path(folder).glob("mlflow.db*"))
            copied = sum(
                path.stat().st_size for path in Path(folder, "mlartifacts", f"c{i}").rglob("*") if path.is_file()
            )
            rows.append({"what": f"collection {i}", **row, "database_bytes": size, "model_MB": round(copied / 1e6, 1)})
    return rows


def measure_requests() -> list[Row]:
    """Count the requests of one job to S3 for each shard, trial and cluster, and for the collection itself."""
    import boto3

    from tests.support.s3_server import CREDENTIALS, S3Server

    shards, k = 2, 2
    counts: Counter[tuple[str, str]] = Counter()

    def count(method: str, path: str) -> None:
        unit_of_request = next((unit for folder, unit in UNIT_OF_FOLDER.items() if folder in path), "collection")
        counts["LIST" if "list-type=2" in path else method, unit_of_request] += 1

    server = S3Server()
    os.environ.update({"AWS_ENDPOINT_URL_S3": server.endpoint, **CREDENTIALS})
    boto3.client("s3").create_bucket(Bucket="bucket")
    server.refuse = count
    noise = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        crawl = Path(folder) / "crawl"
        crawl.mkdir()
        for i in range(8 * shards):
            pixels = np.kron(noise.integers(0, 255, (8, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
            Image.fromarray(pixels).save(crawl / f"{i:03d}.png")
        command = [sys.executable, "jobs/cluster_collection.py", "--collection", "c", "--source", str(crawl)]
        command += ["--workspace", "s3://bucket/w", "--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
        command += ["--k", str(k), "--image-size", "32"]
        for setting in ("ingest.records_per_shard=8", "clustering.transforms=[color]", "clustering.batch_size=4"):
            command += ["--set", setting]
        for setting in ("window=2", "min_iterations=2", "max_iterations=4", "final_iterations=2"):
            command += ["--set", f"clustering.schedule.{setting}"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
    server.stop()
    units = {"shard": shards, "trial": 1, "cluster": k, "collection": 1}
    return [
        {"request": method, "for each": unit, "number": number / units[unit]}
        for (method, unit), number in sorted(counts.items())
    ]


PARTS: dict[str, Callable[[], list[Row]]] = {
    "step": measure_step,
    "assign": measure_assign,
    "load": measure_load,
    "checkpoint": measure_checkpoint,
    "queue": measure_queue,
    "driver": measure_driver,
    "ray": measure_ray,
    "track": measure_track,
    "requests": measure_requests,
}


def main() -> None:
    """Measure the requested parts, and print a line per result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to measure (default: all)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {}
    for part in arguments.parts.split(","):
        result[part] = PARTS[part]()
        for row in result[part]:
            print(f"{part:<11}" + "  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

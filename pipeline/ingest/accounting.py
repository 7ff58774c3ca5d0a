"""Ingest accounting: the totals of a crawl, computed from the tables of rows, with every record accounted for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
from tqdm import tqdm

from pipeline.config import IngestConfig
from pipeline.errors import PipelineError
from pipeline.paths import CrawlPaths
from pipeline.records import Crawl
from pipeline.storage import Storage, read_tables

RATES = ("seconds", "records_per_second", "bytes_per_second")
"""Names of the statistics that `rates` returns."""

PERCENTILES = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}
"""Percentiles of the image sides, by their names in the statistics."""


def account(storage: Storage, paths: CrawlPaths, records: int, n_shards: int, config: IngestConfig) -> Crawl:
    """Return the totals of the crawl `paths`, whose rows must be final, with all statistics except the rates.

    Raises PipelineError if the accepted and the rejected rows do not add up to `records`.
    """
    content_digest = hashlib.sha256(" ".join(map(str, config.image_form)).encode())
    reasons: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    sides: list[np.ndarray[Any, Any]] = [np.empty((0, 2), np.int32)]
    columns = [
        "status", "reason", "image_id", "bytes", "stored_bytes", "format", "width", "height", "caption", "taken_at",
    ]  # fmt: skip
    for table in read_tables(storage, map(paths.rows, range(n_shards)), columns):
        accepted = table.filter(pc.field("status") == "accepted")
        for image_id in accepted["image_id"].to_pylist():
            content_digest.update(image_id.encode())
        reasons.update(table["reason"].drop_null().to_pylist())
        counts["accepted"] += accepted.num_rows
        counts["bytes"] += pc.sum(table["bytes"]).as_py() or 0
        counts["stored_bytes"] += pc.sum(accepted["stored_bytes"]).as_py() or 0
        counts["with_caption"] += accepted.num_rows - accepted["caption"].null_count
        counts["with_time"] += accepted.num_rows - accepted["taken_at"].null_count
        counts.update(f"format_{name}" for name in accepted["format"].to_pylist())
        sides.append(np.stack([accepted[side].to_numpy() for side in ("width", "height")], axis=1))
    n_accepted = counts.pop("accepted")
    if n_accepted + reasons.total() != records:
        raise PipelineError(
            f"crawl {paths.crawl_id}: {n_accepted} accepted and {reasons.total()} rejected records do not add up to "
            f"all {records} records; delete {storage.uri(paths.folder)} and ingest again"
        )
    return Crawl(
        collection=paths.collection,
        crawl_id=paths.crawl_id,
        n_shards=n_shards,
        records=records,
        accepted=n_accepted,
        rejected=dict(reasons.most_common()),
        image_size=config.image_size,
        digest=content_digest.hexdigest(),
        color_mode=config.color_mode,
        image_format=config.image_format,
        keep_duplicates=config.keep_duplicates,
        statistics={
            **{name: float(n) for name, n in sorted(counts.items())},
            **_side_percentiles(np.concatenate(sides)),
        },
    )


def rates(crawl: Crawl, records: int, seconds: float) -> dict[str, float]:
    """Return the rates (RATES) at which `records` records of `crawl` were ingested within `seconds`."""
    share = records / max(1, crawl.records)
    return {
        "seconds": round(seconds, 3),
        "records_per_second": round(records / seconds, 3),
        "bytes_per_second": round(share * crawl.statistics["bytes"] / seconds),
    }


def describe_outcome(crawl: Crawl) -> str:
    """Return one line about the accepted and rejected records of `crawl`."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in crawl.rejected.items())
    rejected = f"{crawl.records - crawl.accepted} rejected" + (f" ({reasons})" if reasons else "")
    return f"{crawl.records} records: {crawl.accepted} accepted, {rejected}"


def describe_sizes(statistics: Mapping[str, float]) -> str:
    """Return one line about the bytes, image sizes and formats in the `statistics` of a crawl."""
    formats = {name.removeprefix("format_"): n for name, n in statistics.items() if name.startswith("format_")}
    read, stored = (tqdm.format_sizeof(statistics[name], "B") for name in ("bytes", "stored_bytes"))
    parts = [f"{read} read, {stored} stored"]
    if "short_side_px_median" in statistics:
        low, middle, high = (statistics[f"short_side_px_{name}"] for name in ("min", "median", "max"))
        parts.append(f"short side {low:.0f} to {high:.0f} px, median {middle:.0f}")
    parts += [f"{n:.0f} {name}" for name, n in sorted(formats.items(), key=lambda item: -item[1])]
    return ", ".join(parts)


def _side_percentiles(sides: np.ndarray[Any, Any]) -> dict[str, float]:
    """Percentiles of the short and the long sides in px of N images; `sides` is (N, 2). Empty for no images."""
    if not len(sides):
        return {}
    percentiles = {}
    for side, px in (("short_side_px", sides.min(1)), ("long_side_px", sides.max(1))):
        for name, q in PERCENTILES.items():
            percentiles[f"{side}_{name}"] = float(np.percentile(px, q))
    return percentiles

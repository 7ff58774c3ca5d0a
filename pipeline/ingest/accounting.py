"""What became of a crawl, in numbers: every record is accounted for, from the tables of rows alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
from tqdm import tqdm

from pipeline.config import IngestConfig
from pipeline.console import rated
from pipeline.errors import PipelineError
from pipeline.paths import CrawlPaths
from pipeline.records import Crawl
from pipeline.storage import Storage, read_tables

RATES = ("seconds", "records_per_second", "bytes_per_second")
"""Statistics that `rates` gives."""
PERCENTILES = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}


def account(storage: Storage, paths: CrawlPaths, records: int, n_shards: int, config: IngestConfig) -> Crawl:
    """The totals of the crawl `paths`, whose rows are final; its statistics are all but the rates.

    Raises PipelineError where the rows are not those of `records` records.
    """
    content = hashlib.sha256(" ".join(map(str, config.image_form)).encode())
    reasons: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    sides: list[np.ndarray[Any, Any]] = [np.empty((0, 2), np.int32)]
    columns = [
        "status",
        "reason",
        "image_id",
        "bytes",
        "stored_bytes",
        "format",
        "width",
        "height",
        "caption",
        "taken_at",
    ]
    for table in read_tables(storage, map(paths.rows, range(n_shards)), columns):
        accepted = table.filter(pc.field("status") == "accepted")
        for image_id in accepted["image_id"].to_pylist():
            content.update(image_id.encode())
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
            f"crawl {paths.crawl_id}: {n_accepted} accepted and {reasons.total()} rejected of {records} records; "
            f"delete {storage.uri(paths.folder)} and ingest again"
        )
    return Crawl(
        collection=paths.collection,
        crawl_id=paths.crawl_id,
        n_shards=n_shards,
        records=records,
        accepted=n_accepted,
        rejected=dict(reasons.most_common()),
        image_size=config.image_size,
        digest=content.hexdigest(),
        color_mode=config.color_mode,
        image_format=config.image_format,
        keep_duplicates=config.keep_duplicates,
        statistics={**{name: float(n) for name, n in sorted(counts.items())}, **_sides(np.concatenate(sides))},
    )


def rates(crawl: Crawl, records: int, seconds: float) -> dict[str, float]:
    """How fast `records` records of `crawl` were ingested, in `seconds`, as further statistics."""
    share = records / max(1, crawl.records)
    return {
        "seconds": round(seconds, 3),
        "records_per_second": round(records / seconds, 3),
        "bytes_per_second": round(share * crawl.statistics["bytes"] / seconds),
    }


def rates_in_words(records: int, found: Mapping[str, float]) -> str:
    """What `rates` found for `records` records, on one line."""
    volume = tqdm.format_sizeof(found["bytes_per_second"], "B")
    return f"{rated(records, 'record', found['seconds'])}, {volume}/s"


def in_words(crawl: Crawl) -> str:
    """Outcomes of `crawl` on one line."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in crawl.rejected.items())
    rejected = f"{crawl.records - crawl.accepted} rejected" + (f" ({reasons})" if reasons else "")
    return f"{crawl.records} records: {crawl.accepted} accepted, {rejected}"


def sizes_in_words(statistics: Mapping[str, float]) -> str:
    """Bytes, formats and sizes of a crawl on one line."""
    formats = {name.removeprefix("format_"): n for name, n in statistics.items() if name.startswith("format_")}
    read, stored = (tqdm.format_sizeof(statistics[name], "B") for name in ("bytes", "stored_bytes"))
    parts = [f"{read} read, {stored} stored"]
    if "short_side_px_median" in statistics:
        low, middle, high = (statistics[f"short_side_px_{name}"] for name in ("min", "median", "max"))
        parts.append(f"short side {low:.0f} to {high:.0f} px, median {middle:.0f}")
    parts += [f"{n:.0f} {name}" for name, n in sorted(formats.items(), key=lambda item: -item[1])]
    return ", ".join(parts)


def _sides(sides: np.ndarray[Any, Any]) -> dict[str, float]:
    """Percentiles of the short and the long sides of N images (N, 2)."""
    if not len(sides):
        return {}
    found = {}
    for side, px in (("short_side_px", sides.min(1)), ("long_side_px", sides.max(1))):
        for name, q in PERCENTILES.items():
            found[f"{side}_{name}"] = float(np.percentile(px, q))
    return found

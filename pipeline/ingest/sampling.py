"""A random part of a crawl."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from operator import itemgetter

from pipeline.errors import SourceError
from pipeline.records import CrawlRecord


def draw_sample(records: Iterable[CrawlRecord], size: int, seed: int) -> list[CrawlRecord]:
    """`size` of the `records` at random, without replacement, in their order; one pass, and only a sample in memory.

    The draw depends on `seed` and the number of records alone. Records that will be rejected are drawn as well.

    Raises SourceError where there are fewer records than that.
    """

    def lot(numbered: tuple[int, CrawlRecord]) -> bytes:
        return hashlib.sha256(f"{seed} {numbered[0]}".encode()).digest()

    drawn = heapq.nsmallest(size, enumerate(records), key=lot)
    if len(drawn) < size:
        raise SourceError(
            f"ingest.sample: {size} is above the {len(drawn)} records of the source; leave it out for all"
        )
    return [record for _, record in sorted(drawn, key=itemgetter(0))]

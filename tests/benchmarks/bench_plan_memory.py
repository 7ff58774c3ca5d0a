"""Time per row and peak memory of planning a table of URLs: neither must depend on the number of rows.

    python tests/benchmarks/bench_plan_memory.py [--ten-million] [--json FILE]

The script creates tables of 100,000 and 1,000,000 rows (with --ten-million also 10,000,000: 1.5 GB as CSV, 2 GB as JSON
lines) with URLs, captions, times and two more columns. It plans each table in a separate process, as the ingest stage
does: records, listing digest, plan.parquet in shards of 256; then it reads all shards. Peak memory is that of the whole
process, with Python and Arrow; the first line shows the memory after the imports alone. Absolute times depend on the
load of the machine: compare only rows from one run. README.md beside this file has the last measured table.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script, this file can only import from its own folder

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest.plan import write_plan
from pipeline.ingest.sources.detect import read_records

KINDS = ("csv", "jsonl", "parquet")
RECORDS_PER_SHARD = 256
CHUNK = 50_000
"""Number of rows that are generated at a time."""


def chunks(rows: int) -> Iterator[list[dict[str, Any]]]:
    """Yield `rows` invented posts in lists of `CHUNK`."""
    for start in range(0, rows, CHUNK):
        yield [
            {
                "id": i,
                "url": f"https://cdn{i % 7}.example.org/v/t51/{i * 7919:012d}_n.jpg?size=l",
                "caption": f"Fontana di Trevi by night, photograph {i} #trevi #roma",
                "taken_at": 1_500_000_000 + i,
                "likes": i % 1000,
            }
            for i in range(start, min(start + CHUNK, rows))
        ]


def make_table(path: Path, rows: int) -> None:
    """Write a table of `rows` rows to `path`, in the format that its suffix names."""
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, pa.Table.from_pylist(next(chunks(1))).schema) as writer:
            for chunk in chunks(rows):
                writer.write_table(pa.Table.from_pylist(chunk))
        return
    with path.open("w", encoding="utf-8") as file:
        if path.suffix == ".csv":
            file.write("id,url,caption,taken_at,likes\n")
            for chunk in chunks(rows):
                file.writelines(f'{r["id"]},{r["url"]},"{r["caption"]}",{r["taken_at"]},{r["likes"]}\n' for r in chunk)
        else:
            for chunk in chunks(rows):
                file.writelines(f"{json.dumps(row)}\n" for row in chunk)


def peak_mib() -> float:
    """Return the peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def plan_one(table: Path | None) -> dict[str, float]:
    """Plan `table` in this process, and measure it; None measures the imports alone."""
    started, records = time.perf_counter(), 0
    if table is not None:
        with tempfile.TemporaryDirectory(dir=table.parent) as folder:
            plan = write_plan(read_records(str(table)), Path(folder) / "plan.parquet", RECORDS_PER_SHARD)
            records = sum(plan.records_of(shard).num_rows for shard in range(plan.n_shards))
    return {"rows": records, "seconds": time.perf_counter() - started, "peak_mib": peak_mib()}


def measure(table: Path | None) -> dict[str, float]:
    """Run `plan_one` in a separate process."""
    command = [sys.executable, __file__, "--plan", str(table or "")]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    """Create and plan the tables, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ten-million", action="store_true", help="also plan tables of 10,000,000 rows")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"formats of the tables (default: {','.join(KINDS)})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    parser.add_argument("--plan", metavar="TABLE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plan is not None:
        print(json.dumps(plan_one(Path(arguments.plan) if arguments.plan else None)))
        return
    print("| table | rows | rows/s | peak memory |\n|---|---|---|---|", flush=True)
    print(f"| imports alone | | | {measure(None)['peak_mib']:.0f} MiB |", flush=True)
    results = []
    for kind in arguments.kinds.split(","):
        for rows in (100_000, 1_000_000, *([10_000_000] if arguments.ten_million else [])):
            with tempfile.TemporaryDirectory() as folder:
                table = Path(folder) / f"urls.{kind}"
                make_table(table, rows)
                result = measure(table)
            results.append({"kind": kind, **result})
            rate = result["rows"] / result["seconds"]
            print(f"| {kind} | {rows:,} | {rate:,.0f} | {result['peak_mib']:.0f} MiB |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

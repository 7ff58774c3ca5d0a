"""Find the visual trends of one photo collection: ingest a crawl, learn prototypes, report what they show.

Run it on a laptop as it stands, or on a cluster with `ray job submit --working-dir . -- python jobs/...`. The same
command again continues an interrupted job and does nothing that is done already.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  python jobs/cluster_collection.py --collection trevifountain --source crawls/trevifountain --k 8,16,32
  python jobs/cluster_collection.py --collection trevifountain --stages report --k 8,16,32 --select-k 16
  python jobs/cluster_collection.py --config jobs/configs/demo.yaml --collection rome --source photos/rome \\
      --set clustering.batch_size=128 --set clustering.schedule.max_iterations=3000

  python jobs/cluster_collection.py --manifest collections.csv --workspace trends --k 8,16,32
  python jobs/cluster_collection.py --collection rome --workspace trends --tracking-uri http://MLFLOW:5000 \\
      --sync-tracking

Every value of the configuration is documented in pipeline/config.py. Flags win over the file, --set over both.
exit codes: 0 done, 1 failed (run it again to continue), 2 refused: the configuration asks for something impossible.
"""


def comma_list(text: str) -> list[str]:
    """The parts of "a, b"."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. Everything but --config, --set and --sync-tracking is None where it was not given."""

    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what")
    what.add_argument("--collection", metavar="NAME", help="name of the collection, such as a hashtag; required")
    what.add_argument(
        "--manifest",
        type=Path,
        metavar="CSV",
        help="table of many collections: columns collection, source, and any of these flags or of the configuration",
    )
    what.add_argument(
        "--source",
        action="append",
        metavar="SRC",
        help="folder, dump, tar, table of addresses or arrays, local or s3://bucket/prefix; may be repeated",
    )
    what.add_argument("--source-type", metavar="NAME", help="what the sources are, such as table [found by looking]")
    what.add_argument("--url-column", metavar="NAME", help="column of addresses in a table [found by its name]")
    what.add_argument(
        "--keep-duplicates", action="store_true", default=None, help="keep reposts, too [the first of each image]"
    )
    what.add_argument(
        "--allow-private-hosts",
        action="store_true",
        default=None,
        help="download from addresses outside the public internet, too; only for crawls that you wrote",
    )
    what.add_argument(
        "--retry-unreachable",
        action="store_true",
        default=None,
        help="try the records of a complete crawl again that could not be reached, and only them",
    )
    what.add_argument(
        "--no-examples",
        action="store_false",
        dest="examples",
        default=None,
        help="leave every photo, caption and link out of the report; prototypes speak for their images",
    )
    what.add_argument("--workspace", metavar="DIR", help="folder or s3://bucket/prefix for all results [workspace]")
    what.add_argument(
        "--stages", type=comma_list, metavar="A,B", help="of ingest, cluster and report; [ingest,cluster,report]"
    )
    what.add_argument("--run-id", metavar="ID", help="name of the run [derived from configuration and images]")
    what.add_argument("--tracking-uri", metavar="URI", help="MLflow server or database [SQLite in the workspace]")
    what.add_argument(
        "--sync-tracking",
        action="store_true",
        help="only record the collection's reported runs that MLflow lacks, because its server was down or is new",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--k", type=comma_list, metavar="K,K", help="numbers of prototypes, one trial each [8,16,32]")
    how.add_argument("--select-k", metavar="K", help="the K to report [the elbow of the loss]")
    how.add_argument("--seeds", metavar="N", help="trials of each K; the one with the lowest loss counts [1]")
    how.add_argument(
        "--method",
        metavar="NAME",
        help="dti-gmm or dti-kmeans; to compare with: ti-gmm, ti-kmeans, gmm, kmeans [dti-gmm]",
    )
    how.add_argument(
        "--transforms",
        type=comma_list,
        metavar="A,B",
        help="of color, affine, projective, tps and morphological, in order; '' for none [color,projective]",
    )
    how.add_argument("--image-size", metavar="PX", help="side of the square images [128]")
    how.add_argument(
        "--warm-start", metavar="RUN", help="earlier run of this collection to go on from, or latest [none]"
    )
    how.add_argument("--workers", metavar="N", help="processes that train together [1]")
    how.add_argument("--config", type=Path, metavar="FILE", help="YAML file with any part of the configuration")
    how.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", dest="overrides", help="one value; may be repeated"
    )
    return parser.parse_args(argv)


CONFIG_KEY = {
    "k": "clustering.k",
    "select_k": "clustering.select_k",
    "seeds": "clustering.seeds",
    "method": "clustering.method",
    "transforms": "clustering.transforms",
    "source_type": "ingest.source_type",
    "url_column": "ingest.url_column",
    "keep_duplicates": "ingest.keep_duplicates",
    "allow_private_hosts": "ingest.http.allow_private_hosts",
    "retry_unreachable": "ingest.http.retry_unreachable",
    "examples": "reporting.examples",
    "image_size": "ingest.image_size",
    "warm_start": "clustering.warm_start",
    "workers": "clustering.workers",
}
"""Where in the configuration a flag belongs, if not at its top level."""


def main() -> None:
    """One collection, or those of a table."""
    arguments = vars(parse_arguments())
    # Imported here so that --help answers at once.
    from pipeline.config import load_config
    from pipeline.errors import ConfigError
    from pipeline.job.collection import run_collection
    from pipeline.job.pool import LazyPool
    from pipeline.session import ray_session
    from pipeline.storage import open_storage

    file, overrides, table, sync = (
        arguments.pop(name) for name in ("config", "overrides", "manifest", "sync_tracking")
    )
    flags: dict[str, Any] = {CONFIG_KEY.get(n, n): v for n, v in arguments.items() if v is not None}
    if len(flags.get("source", ())) == 1:
        (flags["source"],) = flags["source"]
    if sync:
        from pipeline.reporting.sync import sync_tracking

        if table is not None:
            raise ConfigError("--sync-tracking takes one --collection; with --manifest, leave it out: the job records")
        # The stage that neither reads a source nor needs a tracking server by name: each report has its own.
        config = load_config(file, flags | {"stages": ["cluster"]}, overrides)
        sync_tracking(open_storage(config.workspace), config)
        return
    with ray_session():
        if table is not None:
            from pipeline.job.many import run_collections

            run_collections(table, lambda row: load_config(file, flags | named(row), overrides))
            return
        config = load_config(file, flags, overrides)
        with LazyPool([config]) as pool:
            lines = run_collection(open_storage(config.workspace), config, pool.train)
    for line in lines:
        print(line)


def named(row: dict[str, str]) -> dict[str, Any]:
    """The columns of a table of collections, as the flags of those names or keys of the configuration."""
    import yaml

    values: dict[str, Any] = {}
    for column, value in row.items():
        name = column.replace("-", "_")
        if name in {"k", "transforms", "stages"}:
            values[CONFIG_KEY.get(name, name)] = comma_list(value)
        else:
            values[CONFIG_KEY.get(name, name)] = yaml.safe_load(value) if "." in name else value
    return values


if __name__ == "__main__":
    from pipeline.errors import exit_with

    exit_with(main)

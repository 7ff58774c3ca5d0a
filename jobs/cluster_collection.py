"""Find the visual trends of one photo collection: ingest a crawl, learn prototypes, report what they show.

Run it on a laptop as it stands, or on a cluster with `ray job submit --working-dir . -- python jobs/...`. The same
command again continues an interrupted job and does nothing that is done already.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.orchestration.arguments import (
    CONFIG_KEY,
    add_configuration_flags,
    add_result_flags,
    add_source_flags,
    configured,
)

EXAMPLES = """\
examples:
  python jobs/cluster_collection.py --collection trevifountain --source crawls/trevifountain --k 8,16,32
  python jobs/cluster_collection.py --collection trevifountain --stages report --k 8,16,32 --select-k 16
  python jobs/cluster_collection.py --config jobs/configs/demo.yaml --collection rome --source photos/rome \\
      --set clustering.batch_size=128 --set clustering.schedule.max_iterations=3000

  python jobs/cluster_collection.py --manifest collections.csv --workspace trends --k 8,16,32
  python jobs/cluster_collection.py --collection trevifountain --forget unwanted.txt
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
    add_source_flags(what)
    what.add_argument(
        "--keep-duplicates", action="store_true", default=None, help="keep reposts, too [the first of each image]"
    )
    what.add_argument(
        "--forget",
        type=Path,
        metavar="FILE",
        help="remove for good what FILE names, an image id, SHA-256 or URL a line; no stage runs",
    )
    add_result_flags(what)
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
    add_configuration_flags(how)
    return parser.parse_args(argv)


NO_STAGE = {"stages": ["cluster"]}
"""The one that neither reads a source nor needs a tracking server by name, for what runs none."""


def main() -> None:
    """One collection, or those of a table."""
    arguments = vars(parse_arguments())
    # Imported here so that --help answers at once.
    from pipeline.config import load_config
    from pipeline.errors import ConfigError
    from pipeline.orchestration.collection import run_collection
    from pipeline.orchestration.forgetting import check_not_forgetting
    from pipeline.orchestration.pool import LazyPool
    from pipeline.session import check_place, ray_session
    from pipeline.storage import open_storage

    file, overrides, table, unwanted, sync = (
        arguments.pop(name) for name in ("config", "overrides", "manifest", "forget", "sync_tracking")
    )
    flags = configured(arguments)
    alone = [flag for flag, given in (("--forget", unwanted is not None), ("--sync-tracking", sync)) if given]
    if len(alone) > 1 or (alone and (table is not None or {"source", "stages", "reporting.examples"} & set(flags))):
        raise ConfigError(
            f"{' and '.join(alone)}: each is for one collection and runs no stage; leave out --manifest, --source, "
            "--stages and --no-examples, and give one of them"
        )
    with ray_session():
        if table is not None:
            from pipeline.orchestration.many_collections import run_collections

            run_collections(table, lambda row: load_config(file, flags | named(row), overrides))
            return
        config = load_config(file, flags | NO_STAGE if alone else flags, overrides)
        storage = open_storage(config.workspace)
        lines: list[str] = []
        if alone:
            check_place(config.model_copy(update={"stages": []}))
        if sync:
            from pipeline.reporting.tracking.sync import sync_tracking

            check_not_forgetting(storage, config.collection)
            sync_tracking(storage, config)
        elif unwanted is not None:
            from pipeline.orchestration.forget import forget

            lines = forget(storage, config.collection, unwanted, config.tracking_uri)
        else:
            with LazyPool([config]) as pool:
                lines = run_collection(storage, config, pool.train)
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

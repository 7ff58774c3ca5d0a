"""Find the visual trends of a photo collection: ingest a crawl, train prototypes, and report what they show.

Run it on a laptop, or submit it to a cluster with `ray job submit --working-dir . -- python jobs/...`. Running the same
command again continues an interrupted job; finished work is not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.orchestration.arguments import (
    CONFIG_KEY,
    JobParser,
    add_configuration_flags,
    add_result_flags,
    add_source_flags,
    flags_by_config_key,
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

pipeline/config.py documents every value of the configuration. Flags take precedence over the file, and --set takes
precedence over both.
exit codes: 0 success; 1 failure (run the same command again to continue); 2 invalid configuration or unreadable source.
"""


def comma_list(text: str) -> list[str]:
    """Return the parts of a comma-separated list such as "a, b"."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line. All flags except --config, --set and --sync-tracking default to None."""
    parser = JobParser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("collection and results")
    data.add_argument("--collection", metavar="NAME", help="name of the collection, such as a hashtag; required")
    data.add_argument(
        "--manifest",
        type=Path,
        metavar="CSV",
        help="table of many collections: a column collection, and others named after flags or configuration keys",
    )
    add_source_flags(data)
    data.add_argument(
        "--keep-duplicates", action="store_true", default=None, help="keep duplicates [only the first is kept]"
    )
    data.add_argument(
        "--forget",
        type=Path,
        metavar="FILE",
        help="permanently remove the images that FILE names, one id, SHA-256 or URL per line; runs no stage",
    )
    add_result_flags(data)
    data.add_argument("--stages", type=comma_list, metavar="A,B", help="stages to run [ingest,cluster,report]")
    data.add_argument("--run-id", metavar="ID", help="name of the run [derived from configuration and images]")
    data.add_argument("--tracking-uri", metavar="URI", help="MLflow server or database [SQLite in the workspace]")
    data.add_argument(
        "--sync-tracking",
        action="store_true",
        help="only record the reported runs of the collection that MLflow lacks, for example after its server was down",
    )
    training = parser.add_argument_group("training and configuration")
    training.add_argument(
        "--quality", metavar="NAME", help="quick, standard or best: how long training takes [standard]"
    )
    training.add_argument("--k", type=comma_list, metavar="K,K", help="numbers of prototypes, one trial each [8,16,32]")
    training.add_argument("--select-k", metavar="K", help="K to report [the elbow of the loss]")
    training.add_argument("--seeds", metavar="N", help="trials of each K; the one with the lowest loss is kept [1]")
    training.add_argument(
        "--method",
        metavar="NAME",
        help="dti-gmm or dti-kmeans, or a baseline: ti-gmm, ti-kmeans, gmm, kmeans [dti-gmm]",
    )
    training.add_argument(
        "--transforms",
        type=comma_list,
        metavar="A,B",
        help="modules in order, of color, affine, projective, tps and morphological; '' for none [color,projective]",
    )
    training.add_argument("--image-size", metavar="PX", help="side of the square images in px [128]")
    training.add_argument(
        "--warm-start", metavar="RUN", help="id of an earlier run of this collection to start from, or latest [none]"
    )
    training.add_argument("--workers", metavar="N", help="processes that train one trial together [1]")
    add_configuration_flags(training)
    return parser.parse_args(argv)


STAGES_WITHOUT_SOURCE = {"stages": ["cluster"]}
"""Value of ``stages`` for --forget and --sync-tracking, which run no stage.

`stages` must not be empty, and the configuration is checked for these stages. The check for ``cluster`` requires
neither a source, as that for ``ingest`` does, nor a tracking URI for a workspace in S3, as that for ``report`` does.
"""


def main() -> None:
    """Run the job for one collection, or for all collections of a table."""
    arguments = vars(parse_arguments())
    # Imported here so that --help answers at once.
    from pipeline.clustering.pool import TrainingPool
    from pipeline.config import load_config
    from pipeline.errors import ConfigError
    from pipeline.ingest.forget.names import check_no_takedown
    from pipeline.orchestration.collection import run_collection
    from pipeline.session import check_resources_and_paths, ray_session
    from pipeline.storage import open_storage

    file, overrides, table, takedown_file, sync = (
        arguments.pop(name) for name in ("config", "overrides", "manifest", "forget", "sync_tracking")
    )
    flags = flags_by_config_key(arguments)
    exclusive = [flag for flag, given in (("--forget", takedown_file is not None), ("--sync-tracking", sync)) if given]
    other_flags = table is not None or {"source", "stages", "reporting.examples"} & set(flags)
    if len(exclusive) > 1 or (exclusive and other_flags):
        raise ConfigError(
            f"{' and '.join(exclusive)}: --forget and --sync-tracking work on one collection and run no stage; give "
            "one of them, without --manifest, --source, --stages and --no-examples"
        )
    with ray_session():
        if table is not None:
            from pipeline.orchestration.many_collections import run_collections

            run_collections(table, lambda row: load_config(file, flags | row_values(row), overrides))
            return
        config = load_config(file, flags | STAGES_WITHOUT_SOURCE if exclusive else flags, overrides)
        storage = open_storage(config.workspace)
        lines: list[str] = []
        if exclusive:
            check_resources_and_paths(config.model_copy(update={"stages": []}))
        if sync:
            from pipeline.reporting.sync import sync_tracking

            check_no_takedown(storage, config.collection)
            sync_tracking(storage, config)
        elif takedown_file is not None:
            from pipeline.orchestration.forget import forget

            lines = forget(storage, config.collection, takedown_file, config.tracking_uri)
        else:
            with TrainingPool(config.clustering, config.clustering.n_trials) as pool:
                lines = run_collection(storage, config, pool.train)
    for line in lines:
        print(line)


def row_values(row: dict[str, str]) -> dict[str, Any]:
    """Return a row of a table of collections by configuration key; its columns are named after flags or keys."""
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

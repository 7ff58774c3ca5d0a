"""Assign a new crawl to the prototypes of an earlier run, without training, and report what changed.

Run it on a laptop, or submit it to a cluster with `ray job submit --working-dir . -- python jobs/...`. Running the same
command again continues an interrupted job; finished work is not repeated.
"""

from __future__ import annotations

import argparse

from pipeline.orchestration.arguments import (
    JobParser,
    add_configuration_flags,
    add_result_flags,
    add_source_flags,
    flags_by_config_key,
)

EXAMPLES = """\
examples:
  python jobs/assign_collection.py --collection trevifountain --source crawls/2026-11
  python jobs/assign_collection.py --collection trevifountain --run run-0123456789ab --crawl 9f2c51d07ab4

Without --source, the crawls that --crawl names are assigned; without both, all complete crawls that the run has not
learned from. The image size, the colours, the format and the rule for duplicates come from the run; the other settings
of `ingest`, which pipeline/config.py documents, apply as configured.
exit codes: 0 success; 1 failure (run the same command again to continue); 2 invalid configuration or unreadable source.
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line. All flags except --run, --crawl, --config and --set default to None."""
    parser = JobParser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("collection and results")
    data.add_argument("--collection", metavar="NAME", help="name of the collection, such as a hashtag; required")
    data.add_argument("--run", default="latest", metavar="ID", help="id of the run whose prototypes are used [latest]")
    data.add_argument(
        "--crawl", action="append", default=[], metavar="ID", help="id of a complete crawl to assign; may be repeated"
    )
    add_source_flags(data)
    add_result_flags(data)
    add_configuration_flags(parser.add_argument_group("configuration"))
    return parser.parse_args(argv)


def main() -> None:
    """Assign the crawls that the command line names."""
    arguments = vars(parse_arguments())
    # Imported here so that --help answers at once.
    from pipeline.config import load_config
    from pipeline.orchestration.new_crawls import assign_collection
    from pipeline.session import ray_session
    from pipeline.storage import open_storage

    file, overrides, run, crawls = (arguments.pop(name) for name in ("config", "overrides", "run", "crawl"))
    # `stages` is not used by this job, so its value in the configuration file is replaced. The configuration is checked
    # for its stages, and the check for the stage cluster requires neither a source nor a tracking URI.
    config = load_config(file, flags_by_config_key(arguments) | {"stages": ["cluster"]}, overrides)
    with ray_session():
        lines = assign_collection(open_storage(config.workspace), config, run, crawls)
    for line in lines:
        print(line)


if __name__ == "__main__":
    from pipeline.errors import exit_with

    exit_with(main)

"""Assign a new crawl to prototypes that are learned already, and say what changed: no training.

Run it on a laptop as it stands, or on a cluster with `ray job submit --working-dir . -- python jobs/...`. The same
command again continues an interrupted job and does nothing that is done already.
"""

from __future__ import annotations

import argparse

from pipeline.orchestration.arguments import add_configuration_flags, add_result_flags, add_source_flags, configured

EXAMPLES = """\
examples:
  python jobs/assign_collection.py --collection trevifountain --source crawls/2026-11
  python jobs/assign_collection.py --collection trevifountain --run run-0123456789ab --crawl 9f2c51d07ab4

Without --source it assigns the crawls that --crawl names; without both, all complete crawls that the run did not learn
from. Size, colours, format of the images and the rule for repeats are those of the run; of the configuration, which is
documented in pipeline/config.py, the rest of `ingest` applies.
exit codes: 0 done, 1 failed (run it again to continue), 2 refused: the configuration asks for something impossible.
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. Everything but --run, --crawl, --config and --set is None where it was not given."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what")
    what.add_argument("--collection", metavar="NAME", help="name of the collection, such as a hashtag; required")
    what.add_argument("--run", default="latest", metavar="ID", help="run whose prototypes to use [latest]")
    what.add_argument(
        "--crawl", action="append", default=[], metavar="ID", help="crawl that is complete already; may be repeated"
    )
    add_source_flags(what)
    add_result_flags(what)
    add_configuration_flags(parser.add_argument_group("how"))
    return parser.parse_args(argv)


def main() -> None:
    """All crawls that the command line means."""
    arguments = vars(parse_arguments())
    # Imported here so that --help answers at once.
    from pipeline.config import load_config
    from pipeline.orchestration.new_crawls import assign_collection
    from pipeline.session import ray_session
    from pipeline.storage import open_storage

    file, overrides, run, crawls = (arguments.pop(name) for name in ("config", "overrides", "run", "crawl"))
    # Neither a source nor a place for tracking is needed; what the file says of stages is for another job.
    config = load_config(file, configured(arguments) | {"stages": ["cluster"]}, overrides)
    with ray_session():
        lines = assign_collection(open_storage(config.workspace), config, run, crawls)
    for line in lines:
        print(line)


if __name__ == "__main__":
    from pipeline.errors import exit_with

    exit_with(main)

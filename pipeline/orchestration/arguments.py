"""The flags that several jobs have, and where each of them stands in the configuration.

It imports nothing that takes long, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

Flags = argparse._ArgumentGroup
"""What a job's flags are added to."""


def add_source_flags(flags: Flags) -> None:
    """What to ingest, and how it is read."""
    flags.add_argument(
        "--source",
        action="append",
        metavar="SRC",
        help="folder, dump, tar, table of addresses or arrays, local or s3://bucket/prefix; may be repeated",
    )
    flags.add_argument("--source-type", metavar="NAME", help="what the sources are, such as table [found by looking]")
    flags.add_argument("--url-column", metavar="NAME", help="column of addresses in a table [found by its name]")
    flags.add_argument(
        "--allow-private-hosts",
        action="store_true",
        default=None,
        help="download from addresses outside the public internet, too; only for crawls that you wrote",
    )
    flags.add_argument(
        "--retry-unreachable",
        action="store_true",
        default=None,
        help="try the records of a complete crawl again that could not be reached, and only them",
    )


def add_result_flags(flags: Flags) -> None:
    """Where results go, and what they show."""
    flags.add_argument(
        "--no-examples",
        action="store_false",
        dest="examples",
        default=None,
        help="leave every photo, caption and link out of the report; prototypes speak for their images",
    )
    flags.add_argument("--workspace", metavar="DIR", help="folder or s3://bucket/prefix for all results [workspace]")


def add_configuration_flags(flags: Flags) -> None:
    """Any value of the configuration, from a file or one by one."""
    flags.add_argument("--config", type=Path, metavar="FILE", help="YAML file with any part of the configuration")
    flags.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", dest="overrides", help="one value; may be repeated"
    )


def configured(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given, by their keys in the configuration, as `load_config` takes them."""
    values = {CONFIG_KEY.get(name, name): value for name, value in arguments.items() if value is not None}
    if len(values.get("source", ())) == 1:
        (values["source"],) = values["source"]
    return values

"""Flags that several jobs share, and their keys in the configuration.

This module has no slow imports, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

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
"""Configuration keys of the flags that are not top-level keys, by the name of the parsed argument."""


class JobParser(argparse.ArgumentParser):
    """Parser of a job's flags that suggests the right name for a misspelled flag."""

    def error(self, message: str) -> NoReturn:
        """Print `message` and end the job."""
        from pipeline.config_errors import similar

        unknown = message.removeprefix("unrecognized arguments: ").split() if "unrecognized" in message else []
        flags = {name: name for name in self._option_string_actions}
        suggestions = [similar(word.partition("=")[0], flags) for word in unknown if word.startswith("--")]
        super().error(message + next((text for text in suggestions if text), ""))


Flags = argparse._ArgumentGroup
"""Group of flags in the --help text of a job."""


def add_source_flags(flags: Flags) -> None:
    """Add the flags for the sources and for the way in which they are read."""
    flags.add_argument(
        "--source",
        action="append",
        metavar="SRC",
        help="source to ingest: a folder, dump, tar, ZIP, table of URLs or of posts, or array file, local or "
        "s3://bucket/prefix; may be repeated",
    )
    flags.add_argument("--source-type", metavar="NAME", help="type of the sources, such as table [detected]")
    flags.add_argument(
        "--url-column", metavar="NAME", help="column of a table that has the URLs [detected by its name]"
    )
    flags.add_argument(
        "--allow-private-hosts",
        action="store_true",
        default=None,
        help="also download from addresses outside the public internet; use only for crawls that you wrote yourself",
    )
    flags.add_argument(
        "--retry-unreachable",
        action="store_true",
        default=None,
        help="retry the unreachable records of a complete crawl, and no others",
    )


def add_result_flags(flags: Flags) -> None:
    """Add the flags for the location and the content of the results."""
    flags.add_argument(
        "--no-examples",
        action="store_false",
        dest="examples",
        default=None,
        help="leave all photos, captions and links out of the report, which then shows only prototypes",
    )
    flags.add_argument("--workspace", metavar="DIR", help="folder or s3://bucket/prefix for all results [workspace]")


def add_configuration_flags(flags: Flags) -> None:
    """Add the flags that set any value of the configuration, from a file or one by one."""
    flags.add_argument("--config", type=Path, metavar="FILE", help="YAML file with any part of the configuration")
    flags.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        dest="overrides",
        help="one value of the configuration, such as clustering.batch_size=32; may be repeated",
    )


def flags_by_config_key(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that were given, by configuration key, for the parameter `flags` of `load_config`."""
    values = {CONFIG_KEY.get(name, name): value for name, value in arguments.items() if value is not None}
    if len(values.get("source", ())) == 1:
        (values["source"],) = values["source"]
    return values

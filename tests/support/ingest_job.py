"""Job that runs only the ingest stage, in a process that tests can kill.

::

    python -m tests.support.ingest_job '{"source": …}'
"""

from __future__ import annotations

import json
import sys

from pipeline.config import load_config
from pipeline.errors import exit_with
from pipeline.ingest.stage import ingest
from pipeline.session import ray_session
from pipeline.storage import open_storage


def main() -> None:
    """Run the stage as jobs/cluster_collection.py does, without the imports of later stages."""
    config = load_config(None, json.loads(sys.argv[1]), [])
    with ray_session():
        ingest(open_storage(config.workspace), config)


if __name__ == "__main__":
    exit_with(main)

"""The locations where a run was recorded, which must all be cleared when its images are to be forgotten."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pipeline.config import JobConfig
from pipeline.masking import mask
from pipeline.paths import RunPaths
from pipeline.reporting.tracking.server import default_uri, tracking_uri
from pipeline.storage import Storage, read_json, write_json


@dataclass(frozen=True)
class TrackingLocation:
    """An MLflow server or database, and the tag that identifies the workspace there."""

    uri: str | None
    """URI without credentials; None for the database in the workspace, wherever the workspace is now."""
    workspace: str
    """Root of the workspace when the run was recorded; the workspace may have been moved since."""


def add_tracking_location(storage: Storage, paths: RunPaths, config: JobConfig) -> None:
    """Store that the run `paths` is about to be recorded at the tracking URI of `config`, as its latest location."""
    location = TrackingLocation(_stored_uri(storage, tracking_uri(storage, config)), storage.root)
    earlier = tracking_locations(storage, paths)
    if not earlier or earlier[-1] != location:
        locations = [*(other for other in earlier if other != location), location]
        write_json(storage, paths.tracked, {"places": [asdict(each) for each in locations]})


def tracking_locations(storage: Storage, paths: RunPaths) -> list[TrackingLocation]:
    """Return all locations where the run `paths` was recorded or may have been recorded, the latest one last."""
    if not storage.exists(paths.tracked):
        return []
    return [TrackingLocation(**location) for location in read_json(storage, paths.tracked)["places"]]


def _stored_uri(storage: Storage, uri: str) -> str | None:
    return None if uri == default_uri(storage) else mask(uri)

"""Where a run was ever recorded: what is there of it must go when its images are to be forgotten."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pipeline.config import JobConfig
from pipeline.paths import RunPaths
from pipeline.reporting.tracking.server import default_uri, tracking_uri, without_credentials
from pipeline.storage import Storage, read_json, write_json


@dataclass(frozen=True)
class Place:
    """A server or database, and the name by which it knows the workspace."""

    uri: str | None
    """Without credentials; None for the database in the workspace, wherever that lies by now."""
    workspace: str
    """Root of the workspace when the run was recorded; it may have been moved since."""


def remember(storage: Storage, paths: RunPaths, config: JobConfig) -> None:
    """Keep in mind that the run `paths` is about to be recorded where `config` says; the last place comes last."""
    place = Place(_uri_of(storage, tracking_uri(storage, config)), storage.root)
    known = places_of(storage, paths)
    if not known or known[-1] != place:
        kept = [*(earlier for earlier in known if earlier != place), place]
        write_json(storage, paths.tracked, {"places": [asdict(one) for one in kept]})


def places_of(storage: Storage, paths: RunPaths) -> list[Place]:
    """All places where the run `paths` was recorded, or may have been, the last one last."""
    if not storage.exists(paths.tracked):
        return []
    return [Place(**place) for place in read_json(storage, paths.tracked)["places"]]


def _uri_of(storage: Storage, uri: str) -> str | None:
    return None if uri == default_uri(storage) else without_credentials(uri)

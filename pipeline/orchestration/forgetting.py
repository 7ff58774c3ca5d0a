"""While images are being forgotten, nothing else may happen to their collection."""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.paths import forgetting_of
from pipeline.storage import Storage


def check_not_forgetting(storage: Storage, collection: str) -> None:
    """Raise ConfigError where a job that forgets images of `collection` runs, or was interrupted."""
    if storage.exists(forgetting_of(collection)):
        raise ConfigError(
            f"collection {collection!r}: --forget runs or was interrupted, and what must go may still be there; run it "
            "again first, with the same file or another"
        )

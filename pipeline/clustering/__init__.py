"""The clustering stage: trains prototypes on the shards of a collection."""

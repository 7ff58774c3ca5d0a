"""Second stage: shards become trained prototypes."""

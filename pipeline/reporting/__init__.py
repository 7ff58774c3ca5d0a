"""Third stage: shards and a model become manifests, pictures and a tracked run."""

"""Third stage: turn shards and a trained model into tables, pictures, an HTML page and a tracked run."""

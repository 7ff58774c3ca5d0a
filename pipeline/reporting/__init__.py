"""Third stage: shards and a trained model become tables, pictures, a page and a tracked run."""

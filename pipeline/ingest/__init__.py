"""First stage: a crawl on disk becomes WebDataset shards of square images."""

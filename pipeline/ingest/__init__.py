"""First stage: a crawl becomes WebDataset shards of square images."""

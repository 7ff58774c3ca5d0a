"""The first stage: turns a crawl into WebDataset shards of square images."""

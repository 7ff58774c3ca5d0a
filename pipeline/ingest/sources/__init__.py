"""Sources of a crawl: detection, one module per layout, and the readers of files, tars, tables and arrays."""

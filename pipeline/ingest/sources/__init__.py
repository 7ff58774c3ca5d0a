"""What a crawl can be: detection, one module per layout, and the files, tars, tables and arrays below them."""

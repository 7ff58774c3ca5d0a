"""Downloads images by URL: single requests, restricted connections, limits per host, and many downloads at once."""

"""URLs to bytes: one request, checked connections, limits per host, many downloads at once."""

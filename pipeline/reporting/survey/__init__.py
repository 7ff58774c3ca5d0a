"""Statistics, quality and example images of each cluster."""

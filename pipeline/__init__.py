"""Find the visual trends in web-scale image collections with Deep Transformation-Invariant clustering."""

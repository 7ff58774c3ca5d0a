"""Array files with labels: the standard benchmarks."""

"""Sums over each cluster, its quality, and the images that stand for it."""

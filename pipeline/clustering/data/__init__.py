"""Batches of the images of a run, which are decoded once and shared by the workers of a node."""

"""The images of a run as batches: decoded once, shared by the workers of a node."""

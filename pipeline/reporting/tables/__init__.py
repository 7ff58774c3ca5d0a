"""The clusters and prototypes tables and their files."""

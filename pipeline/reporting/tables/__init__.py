"""The tables of clusters and prototypes, and their files."""

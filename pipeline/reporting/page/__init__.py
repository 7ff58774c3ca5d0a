"""The HTML page of a run: one file that loads no other resource."""

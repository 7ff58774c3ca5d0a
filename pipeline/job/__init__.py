"""One job over all stages, for one collection or for thousands."""

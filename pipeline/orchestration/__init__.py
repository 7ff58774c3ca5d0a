"""Run the stages in order, for one collection or for many."""

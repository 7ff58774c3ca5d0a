"""Images to prototypes: of a run, and of crawls that came after it."""

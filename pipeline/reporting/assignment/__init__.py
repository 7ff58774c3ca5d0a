"""Assignment of images to prototypes: the images of a run, and those of later crawls."""

"""The models: prototypes, the transformations that align them to images, and the networks that predict these."""

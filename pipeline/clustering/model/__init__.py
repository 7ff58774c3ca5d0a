"""The models: prototypes, the transformations that align them, and the networks that predict those."""

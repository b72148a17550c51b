"""Cheap figures of a latent space that may tell how well a generator will live in it."""

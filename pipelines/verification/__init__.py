"""Checks of a whole table against itself, its runs' manifests, its source and its model."""

"""Hostile inputs for every place where foreign data comes in; docs/fuzzing.md says how to run them."""

from __future__ import annotations

from importlib import import_module

from .surface import Surface

# Each is a module here with a SURFACE of that name.
NAMES = (
    "job_files", "conditions", "settings", "weights", "images", "image_paths", "texts", "rows", "parquet", "queries",
    "tables", "manifests",
)  # fmt: skip


def surface_named(name: str) -> Surface:
    """The surface of that name; what it needs is imported now."""
    return import_module(f"{__name__}.{name}").SURFACE

"""Hostile inputs for every place where foreign data comes in; docs/fuzzing.md says how to run them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Each module has a SURFACE; those that Ray or torch would slow down import them inside.
_MODULES = (
    "job_files", "conditions", "settings", "weights", "images", "image_paths", "texts", "rows", "parquet", "queries",
    "tables",
)  # fmt: skip


def surfaces() -> dict[str, Any]:
    """Every surface by its name."""
    found = [import_module(f"{__name__}.{name}").SURFACE for name in _MODULES]
    return {surface.name: surface for surface in found}

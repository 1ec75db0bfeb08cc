"""Packages that only an evaluation needs: imported when they are used, and named when they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class PackageMissing(Exception):
    """A package of the extra `evaluate` is not installed; the message is one line that says how to get it."""


def need(module: str, what: str) -> Any:
    """The module, or PackageMissing: `what` needs its package."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0].replace("_", "-")
        raise PackageMissing(f"{what} needs the package {package}: pip install 'corpusmill[evaluate]'") from error

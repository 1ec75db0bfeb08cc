"""Every figure by its name. A figure yields one `Figure` for each case as soon as it is measured."""

from __future__ import annotations

from .types import Measure

# Filled by the modules that measure; imported late, so that naming the figures costs nothing.
FIGURES: dict[str, Measure] = {}

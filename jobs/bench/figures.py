"""Every figure by its name. A figure yields one `Figure` for each case as soon as it is measured."""

from __future__ import annotations

from importlib import import_module

from .types import Measure

# name → module and function, imported when the figure is asked for.
_FIGURES = {
    "encode": "encode:measure_encode",
    "long": "encode:measure_long",
    "decode": "decode:measure_decode",
    "flight": "decode:measure_flight",
    "corpus": "decode:measure_corpus",
    "share": "decode:measure_share",
    "quality": "quality:measure_quality",
    "pipeline": "pipeline:measure_pipeline",
    "resume": "resume:measure_resume",
    "scale": "scale:measure_scale",
    "gpu": "gpu:measure_gpu",
}
NAMES = tuple(_FIGURES)


def figure(name: str) -> Measure:
    """The function that measures the figure called `name`."""
    module, _, function = _FIGURES[name].partition(":")
    return getattr(import_module(f".{module}", __package__), function)

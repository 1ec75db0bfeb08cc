"""Scores of outputs against references, intervals around them, and checks that need no reference; knows no table."""

from __future__ import annotations

from .bootstrap import Comparison, Interval, compare, interval, resample
from .metrics import METRICS, Options, score
from .packages import PackageMissing
from .statistics import Statistics

__all__ = [
    "METRICS",
    "Comparison",
    "Interval",
    "Options",
    "PackageMissing",
    "Statistics",
    "compare",
    "interval",
    "resample",
    "score",
]

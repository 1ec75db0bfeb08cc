"""Bootstrap over documents: percentile intervals, and the paired test of two tables on the same references.

Efron and Tibshirani (1993), chapters 13 and 16; for corpus metrics, Koehn (2004), "Statistical significance tests for
machine translation evaluation".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .statistics import Statistics

# Weights held at once, 8 bytes each.
_WEIGHTS = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A score and the interval around it; null without resampling."""

    score: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`this` against `other`, paired: the difference, its interval, and how likely chance alone makes one as large."""

    this: float
    other: float
    delta: float
    low: float | None
    high: float | None
    p: float | None
    significant: bool


def resample(metrics: list[Statistics], *, samples: int, seed: int) -> list[np.ndarray]:
    """For each metric its scores in `samples` resampled corpora, [samples].

    All metrics are over the same outputs and see the same resampled corpora; so does every later call with as many
    outputs and the same seed, which is what makes two tables, or tasks on the same documents, comparable.
    """
    if not metrics or not samples:
        return [np.empty(0) for _ in metrics]
    widths = np.cumsum([0, *(metric.rows.shape[1] for metric in metrics)])
    rows = np.concatenate([metric.rows for metric in metrics], axis=1)
    sums = np.concatenate([weights @ rows for weights in _weights(len(rows), samples, seed)])
    return [
        metric.score_of(sums[:, start:end]) for metric, start, end in zip(metrics, widths[:-1], widths[1:], strict=True)
    ]


def interval(score: float, resampled: np.ndarray, level: float) -> Interval:
    """The percentile interval at `level`, such as 0.95, of resampled scores."""
    low, high = _percentiles(resampled, level)
    return Interval(score=score, low=low, high=high)


def compare(
    this: float, other: float, ours: np.ndarray, theirs: np.ndarray, level: float, *, documents: int
) -> Comparison:
    """The paired comparison of two scores of `documents` outputs with their scores in the same resampled corpora.

    p is two-sided: how often the resampled differences, moved to mean zero, are at least as far from it as the real
    one (with one added above and below, so that it is never 0). It is at least 2^(1 - documents), the least that the
    exact test of signs can give: one document resampled is itself each time, and would always seem a clear difference.
    Significant: p below 1 - level.
    """
    delta = this - other
    if not len(ours):
        return Comparison(this=this, other=other, delta=delta, low=None, high=None, p=None, significant=False)
    differences = ours - theirs
    low, high = _percentiles(differences, level)
    # What rounding makes of equal sums is not a difference.
    far = np.abs(differences - differences.mean()) >= abs(delta) - 1e-9
    p = max(float(far.sum() + 1) / (len(differences) + 1), 2.0 ** (1 - documents))
    return Comparison(this=this, other=other, delta=delta, low=low, high=high, p=p, significant=p < 1 - level)


def _percentiles(values: np.ndarray, level: float) -> tuple[float | None, float | None]:
    if not len(values):
        return None, None
    tail = 50 * (1 - level)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _weights(outputs: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each output is drawn in each resampled corpus, [some samples, outputs]."""
    generator = np.random.default_rng(seed)
    together = max(1, _WEIGHTS // max(outputs, 1))
    for start in range(0, samples, together):
        count = min(together, samples - start)
        drawn = generator.integers(0, outputs, size=(count, outputs))
        drawn += np.arange(count)[:, None] * outputs
        yield np.bincount(drawn.ravel(), minlength=count * outputs).reshape(count, outputs).astype(np.float64)

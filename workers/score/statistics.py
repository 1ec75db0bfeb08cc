"""What every metric comes down to here: additive statistics of each output, and the score of any sum of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """One metric over a list of outputs.

    `rows`: [outputs, statistics], float64. `score_of`: sums of rows [..., statistics] → scores [...], 0 to 100
    (CIDEr may be above). BLEU and chrF are scores of a whole corpus: a resampled corpus has its own sum and so its
    own score, which no mean of sentence scores would give.
    """

    name: str
    signature: str
    rows: np.ndarray
    score_of: Callable[[np.ndarray], np.ndarray]

    @property
    def score(self) -> float:
        """The score of all outputs together."""
        return float(self.score_of(self.rows.sum(axis=0)))

    def take(self, which: np.ndarray) -> Statistics:
        """The same metric over some of the outputs (indices or a mask)."""
        return replace(self, rows=self.rows[which])


def mean_statistics(name: str, signature: str, values: Sequence[float]) -> Statistics:
    """A metric whose score is the mean of `values`, times 100."""
    rows = np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)
    return Statistics(name=name, signature=signature, rows=rows, score_of=_mean)


def _mean(sums: np.ndarray) -> np.ndarray:
    count = sums[..., 1]
    return 100.0 * np.divide(sums[..., 0], count, out=np.zeros_like(count), where=count > 0)

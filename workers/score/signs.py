"""Signs of trouble in a text that need no reference: it goes round in circles, or it copies its source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A loop is a passage that stands at least this often in a row.
_TIMES = 3
_LONGEST_PERIOD = 64
_SHORTEST = 8


def loop_share(text: str, tokens: Sequence[str]) -> float:
    """The share of a text that its longest loop covers, by words and by characters: 0 to 1."""
    codes = np.unique(np.array(tokens, dtype=object), return_inverse=True)[1] if len(tokens) else np.empty(0, int)
    # Characters find what is one word to the eye: hahahaha, aaaaaa.
    characters = np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32)
    return max(_loop(codes, _LONGEST_PERIOD, _TIMES), _loop(characters, 8, 4 * _TIMES))


def repeated_share(tokens: Sequence[str], n: int = 4) -> float:
    """The share of n-grams that stand in the text before: rep-n of Welleck et al. (2020)."""
    grams = len(tokens) - n + 1
    if grams < _SHORTEST:
        return 0.0
    return 1 - len({tuple(tokens[i : i + n]) for i in range(grams)}) / grams


def copied_share(tokens: Sequence[str], source: Sequence[str], n: int = 5) -> float:
    """The share of the text's words that stand in an n-gram of its source (fewer than n words: in one of theirs)."""
    n = min(n, len(tokens))
    if not n:
        return 0.0
    there = {tuple(source[i : i + n]) for i in range(len(source) - n + 1)}
    copied = np.zeros(len(tokens), dtype=bool)
    for i in range(len(tokens) - n + 1):
        if tuple(tokens[i : i + n]) in there:
            copied[i : i + n] = True
    return float(copied.mean())


def _loop(codes: np.ndarray, longest: int, times: int) -> float:
    """The share of `codes` in the longest run that repeats a period of up to `longest` at least `times` in a row."""
    if len(codes) < _SHORTEST:
        return 0.0
    best = 0
    for period in range(1, min(longest, len(codes) // times) + 1):
        same = codes[period:] == codes[:-period]
        covered = _longest_run(same) + period
        if covered >= times * period:
            best = max(best, covered)
    return best / len(codes)


def _longest_run(same: np.ndarray) -> int:
    breaks = np.flatnonzero(~same)
    edges = np.concatenate([[-1], breaks, [len(same)]])
    return int(np.diff(edges).max()) - 1

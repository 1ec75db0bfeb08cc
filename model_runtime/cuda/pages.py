"""Which pages of the key pool belong to whom: runs of neighbouring pages, taken and given back. Counts, no tensors."""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple


class Run(NamedTuple):
    """`length` neighbouring pages from `first` on."""

    first: int
    length: int


class Pages:
    """The free pages, as runs in order that never touch each other."""

    def __init__(self) -> None:
        self.total = 0
        self._free: list[Run] = []

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return sum(run.length for run in self._free)

    def extend(self, total: int) -> None:
        """The pool has grown to `total` pages."""
        if total > self.total:
            first, self.total = self.total, total
            self.give_back((Run(first, total - first),))

    def take(self, count: int) -> tuple[Run, ...] | None:
        """`count` pages in as few runs as there are, or None when not so many are free.

        The smallest run that holds them all; failing that, the largest runs first.
        """
        if count > self.free:
            return None
        whole = min((run for run in self._free if run.length >= count), key=lambda run: run.length, default=None)
        sources = [whole] if whole else sorted(self._free, key=lambda run: -run.length)
        taken: list[Run] = []
        for run in sources:
            if count == 0:
                break
            part = min(count, run.length)
            at = self._free.index(run)
            rest = Run(run.first + part, run.length - part)
            self._free[at : at + 1] = [rest] if rest.length else []
            taken.append(Run(run.first, part))
            count -= part
        return tuple(taken)

    def give_back(self, runs: tuple[Run, ...]) -> None:
        """The pages of `runs` are free again."""
        for run in runs:
            at = bisect_left(self._free, run)
            first, end = run.first, run.first + run.length
            before = self._free[at - 1] if at else None
            after = self._free[at] if at < len(self._free) else None
            assert before is None or before.first + before.length <= first, "a page was given back twice"
            assert after is None or end <= after.first, "a page was given back twice"
            low, high = at, at
            if before is not None and before.first + before.length == first:
                first, low = before.first, at - 1
            if after is not None and after.first == end:
                end, high = after.first + after.length, at + 1
            self._free[low:high] = [Run(first, end - first)]

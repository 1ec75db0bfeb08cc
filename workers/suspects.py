"""Which of many inputs ends the engine: groups are halved until one is alone, and that one gets a second chance."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from model_runtime import Request

from .child_process import Death

# An input is to blame when it was alone in so many processes that crashed: once may be anybody's fault, twice is not
# chance. A process that somebody killed from outside counts for half of that, so that no operator's kill -9, nor two,
# makes a failed row, and an input that is killed for each time it runs is found all the same.
_GUILTY, _CRASH, _KILLED = 4, 2, 1
# A process that dies while it loads, or before it has made one token of nothing, has no input to blame: after three
# crashes in a row, or six kills, it is the engine that does not work here.
_HOPELESS = 6
# Decodes of one document that must be found guilty, each alone, for what they share (its encoding) to be.
_SHARED = 2


def weight(death: Death) -> int:
    """How much a death says against what was in flight alone: `is_guilty` of the sum."""
    return _KILLED if death.outside else _CRASH


def is_guilty(weights: int) -> bool:
    """Whether the deaths of an input that was alone suffice."""
    return weights >= _GUILTY


def is_hopeless(weights: int) -> bool:
    """Whether the deaths in a row of processes that were given no input suffice."""
    return weights >= _HOPELESS


@dataclass(slots=True, eq=False)
class Suspect:
    """A document with those of its decodes that have not been delivered; `call` is whoever waits for them."""

    request: Request
    call: Any
    weights: int = 0
    # Of the whole document, however many suspects it was cut into.
    guilty: list[str] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        """The keys of its decodes."""
        return [decode.key for decode in self.request.decodes]

    def without(self, key: str) -> Suspect:
        """The same without a decode that was delivered."""
        left = tuple(decode for decode in self.request.decodes if decode.key != key)
        self.request = dataclasses.replace(self.request, decodes=left)
        return self

    def one_by_one(self) -> list[Suspect]:
        """One suspect for each decode."""
        return [
            Suspect(dataclasses.replace(self.request, decodes=(decode,)), self.call, 0, self.guilty)
            for decode in self.request.decodes
        ]


class Suspects:
    """Groups that are to run one after the other; no two of them are ever in one process at a time."""

    def __init__(self) -> None:
        self._groups: deque[list[Suspect]] = deque()

    def __bool__(self) -> bool:
        return bool(self._groups)

    def next(self) -> list[Suspect]:
        """The group to run now."""
        return self._groups.popleft()

    @property
    def keys(self) -> set[str]:
        """The keys of all that wait here."""
        return {key for group in self._groups for one in group for key in one.keys}

    def died(self, group: Sequence[Suspect], death: Death) -> list[Suspect]:
        """What was in flight in a process that died is cut smaller, to run again; those found guilty are returned.

        k guilty ones among n cost about k (log2 n + 2) processes.
        """
        if len(group) > 1:
            half = (len(group) + 1) // 2
            self._first([list(group[:half]), list(group[half:])])
            return []
        [one] = group
        if len(one.request.decodes) > 1:
            self._first([[part] for part in one.one_by_one()])
            return []
        one.weights += weight(death)
        if not is_guilty(one.weights):
            self._first([[one]])
            return []
        one.guilty += one.keys
        return [one] + (self._take_document(one) if len(one.guilty) >= _SHARED else [])

    def _first(self, groups: Iterable[list[Suspect]]) -> None:
        self._groups.extendleft(reversed(list(groups)))

    def _take_document(self, one: Suspect) -> list[Suspect]:
        rest = [suspect for group in self._groups for suspect in group if suspect.guilty is one.guilty]
        self._groups = deque(group for group in self._groups if not any(s.guilty is one.guilty for s in group))
        return rest

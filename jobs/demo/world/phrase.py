"""Sentence templates: `{slot}` is filled from the values given, or else drawn from a word list of that name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from .dice import Dice


class Values(Protocol):
    """What fills the slots that have no word list; it may draw a value when it is asked for one."""

    def __getitem__(self, slot: str, /) -> str: ...


class Phrase:
    """A template, taken apart once so that filling it is a join."""

    __slots__ = ("pieces", "template")

    def __init__(self, template: str, lists: Mapping[str, tuple[str, ...]]) -> None:
        self.template = template
        # Odd places are slots: a word list to draw from, or the name of a value.
        self.pieces: list[str | tuple[str, ...]] = []
        for place, piece in enumerate(re.split(r"\{(\w+)\}", template)):
            if place % 2 == 0:
                self.pieces.append(piece)
            else:
                self.pieces.append(lists.get(piece) or (piece,))

    def say(self, dice: Dice, values: Values) -> str:
        """The sentence, its first letter made large."""
        random = dice.random
        out: list[str] = []
        for piece in self.pieces:
            if type(piece) is str:
                out.append(piece)
            elif len(piece) == 1:
                out.append(values[piece[0]])
            else:
                drawn = piece[int(random() * len(piece))]
                while drawn in out:  # the roads and the roads
                    drawn = piece[int(random() * len(piece))]
                out.append(drawn)
        text = "".join(out)
        return text[0].upper() + text[1:]


def phrases(text: str, lists: Mapping[str, tuple[str, ...]]) -> tuple[Phrase, ...]:
    """One phrase from each line that is not empty."""
    return tuple(Phrase(line.strip(), lists) for line in text.splitlines() if line.strip())


def word_lists(text: str) -> dict[str, tuple[str, ...]]:
    """`name: one | two | three` on each line."""
    lists = {}
    for line in text.splitlines():
        if line.strip():
            name, _, words = line.partition(":")
            lists[name.strip()] = tuple(word.strip() for word in words.split("|"))
            assert len(lists[name.strip()]) > 1, name
    return lists

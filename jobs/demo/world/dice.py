"""Chance that is the same on every machine: seeded draws, and the hash that parts train from held-out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")

SPLITS = ("train", "held_out")
HELD_OUT_SHARE = 10  # one in ten


def stable_hash(text: str) -> int:
    """64 bits of BLAKE2b over the text: the same in every process, unlike `hash`."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


@lru_cache(maxsize=1 << 16)
def is_held_out(kind: str, key: str) -> bool:
    """Whether a name or a combination belongs to the held-out world; one in ten does."""
    return stable_hash(f"{kind}\0{key}") % HELD_OUT_SHARE == 0


class Dice:
    """Draws of one document; it belongs to `split` and draws only what that split may hold."""

    def __init__(self, seed: int, split: str, kind: str, index: int) -> None:
        self.rng = random.Random(stable_hash(f"{seed}/{split}/{kind}/{index}"))
        self.random = self.rng.random
        self.held_out = split == "held_out"

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each as likely as the other."""
        return options[int(self.random() * len(options))]

    def chance(self, probability: float) -> bool:
        """True with that probability."""
        return self.random() < probability

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both possible."""
        return low + int(self.random() * (high - low + 1))

    def fits(self, kind: str, key: str) -> bool:
        """Whether this split may hold the name or combination."""
        return is_held_out(kind, key) == self.held_out

    def until_fits(self, kind: str, draw: Callable[[], str]) -> str:
        """Draw until the result belongs to this split."""
        while True:
            drawn = draw()
            if self.fits(kind, drawn):
                return drawn

"""Notes: one to three sentences, said in five languages from one meaning."""

from __future__ import annotations

from typing import NamedTuple

from . import arabic, chinese, english, german, spanish
from .dice import Dice
from .meaning import Sentence, draw_sentence

LEAST_WORDS, MOST_WORDS = 5, 40


class Note(NamedTuple):
    """English and its translations; `words` counts the English ones."""

    body: str
    words: int
    translations: dict[str, str]
    meanings: tuple[Sentence, ...]


def draw_note(dice: Dice) -> Note:
    """A note of 5 to 40 words."""
    while True:
        chance = dice.random()
        count = 1 if chance < 0.6 else 2 if chance < 0.9 else 3
        meanings = tuple(draw_sentence(dice) for _ in range(count))
        body = " ".join(map(english.sentence, meanings))
        words = len(body.split())
        if LEAST_WORDS <= words <= MOST_WORDS:
            return Note(body, words, translate(meanings), meanings)


def translate(meanings: tuple[Sentence, ...]) -> dict[str, str]:
    """The translations of the sentences, by language."""
    return {
        "de": " ".join(map(german.sentence, meanings)),
        "es": " ".join(map(spanish.sentence, meanings)),
        "zh": "".join(map(chinese.sentence, meanings)),
        "ar": " ".join(map(arabic.sentence, meanings)),
    }

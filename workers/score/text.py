"""Texts as lists of words, in every script; and texts as answers are compared."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

from .packages import need

# Scripts that put no spaces between words: each character, with its marks, counts as one.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_ALONE = rf"[[\p{{L}}\p{{N}}]&&[{_UNSPACED}]]\p{{M}}*"
_LETTER = rf"[[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]"
_WORD = rf"{_ALONE}|{_LETTER}+"
# The Treebank keeps t-shirt and 3.5 whole, and takes contractions apart.
_CAPTION_WORD = rf"{_ALONE}|n't\b|'(?:s|re|ve|ll|d|m)\b|{_LETTER}+(?:(?:-|(?<=\d)[.,](?=\d)){_LETTER}+)*"


@cache
def _pattern(source: str) -> Any:
    return need("regex", "counting words").compile("(?V1)" + source)


def words(text: str) -> list[str]:
    """Runs of letters, digits and marks, in small letters; characters where a script has no spaces."""
    return _pattern(_WORD).findall(unicodedata.normalize("NFC", text).lower())


def caption_words(text: str) -> list[str]:
    """A caption's words as coco-caption counts them, or close to it: small letters, no punctuation, `don't` as do n't.

    coco-caption runs the Stanford PTB tokenizer, which is Java; on captions the two differ in rare abbreviations.
    """
    text = unicodedata.normalize("NFC", text).lower().replace("\u2019", "'")
    text = _pattern(r"(?<=\w)(?=n't\b)").sub(" ", text)
    return _pattern(_CAPTION_WORD).findall(text)


def as_answer(text: str, ignore_case: bool) -> str:
    """A text as answers are compared: NFC, white space collapsed, letters of one case unless they matter."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return unicodedata.normalize("NFC", text.casefold()) if ignore_case else text

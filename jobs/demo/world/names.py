"""Open names: composed anew for every document, so that a model has to copy what it cannot have learned."""

from __future__ import annotations

from typing import NamedTuple

from . import real_names
from .dice import Dice


class Inventory(NamedTuple):
    """What the syllables of one invented language are made of."""

    onsets: tuple[str, ...]
    nuclei: tuple[str, ...]
    codas: tuple[str, ...]


def _inventory(onsets: str, nuclei: str, codas: str) -> Inventory:
    return Inventory(tuple(onsets.split()), tuple(nuclei.split()), tuple(codas.split()))


INVENTORIES = (
    _inventory("b d k l m n p r s t v z br dr gr kr ml sv st vl zd ch", "a e i o u", "n k r l s v sh ch m t"),
    _inventory("b f g h j k l m n r s t v sk st tr fj hj kn bl", "a e i o u y ei au", "ld rn rg nd lf m n s th rd st"),
    _inventory("b c d f g l m n p r s t v ll gr br qu fl", "a e i o u ia ie io", "n r s l z"),
    _inventory("k s t n h m y r w g z d b sh ch ts ry ky", "a i u e o", "n"),
    _inventory("b d g k l m n t w z mb nd ng kw sh y f", "a e i o u aa", "l m n"),
    _inventory("c d f g h l m n p r t w th gw ll br tr", "a e i o w y ae au", "n r dd th ch rn l ff"),
    _inventory("b d f h j k kh m n q r s sh t y z gh", "a i u aa ee ou", "d r m n h b l q sh f"),
)
CONSONANTS = "bcdfghjklmnpqrstvwxz"
VOWELS = "aeiouy"
ACCENTS = {
    "a": "áàäåâãăą",
    "c": "çčć",
    "d": "đď",
    "e": "éèêëęě",
    "g": "ğģ",
    "i": "íïîı",
    "l": "łľ",
    "n": "ñńň",
    "o": "óöøôõő",
    "r": "řŕ",
    "s": "şšśș",
    "t": "țť",
    "u": "úüûůű",
    "y": "ýÿ",
    "z": "žżź",
}
_ENDINGS = "ford burg ville stad grad mouth dorf haven by holm wick ton bridge field au ow ice berg minster ley"
TOWN_ENDINGS = tuple(_ENDINGS.split())
TOWN_BEGINNINGS = ("San", "Port", "New", "Upper", "Lower", "Bad", "Fort", "Santa", "Old", "Saint", "Mount", "Vila")
FAMILY_BEGINNINGS = ("O'", "D'", "Mc", "Mac", "al-", "N'", "L'", "Fitz")


def given_name(dice: Dice) -> str:
    """A given name of this split: invented, accented, hyphenated or real."""
    return dice.until_fits("name", lambda: _given(dice))


def family_name(dice: Dice) -> str:
    """A family name of this split."""
    return dice.until_fits("name", lambda: _family(dice))


def person(dice: Dice) -> str:
    """Given and family name, apart by one space."""
    return f"{given_name(dice)} {family_name(dice)}"


def town(dice: Dice) -> str:
    """A town of this split, of one or two words."""
    return dice.until_fits("town", lambda: _town(dice))


def _given(dice: Dice) -> str:
    chance = dice.random()
    if chance < 0.15:
        return dice.pick(real_names.GIVEN)
    if chance < 0.22:
        return f"{_word(dice, 1, 2)}-{_word(dice, 1, 2)}"
    return _word(dice, 1, 3)


def _family(dice: Dice) -> str:
    chance = dice.random()
    if chance < 0.15:
        return dice.pick(real_names.FAMILY)
    if chance < 0.22:
        return f"{_word(dice, 1, 2)}-{_word(dice, 1, 2)}"
    if chance < 0.32:
        return dice.pick(FAMILY_BEGINNINGS) + _word(dice, 1, 2)
    return _word(dice, 2, 3)


def _town(dice: Dice) -> str:
    chance = dice.random()
    if chance < 0.15:
        return dice.pick(real_names.TOWNS)
    if chance < 0.45:
        return _word(dice, 1, 2) + dice.pick(TOWN_ENDINGS)
    if chance < 0.55:
        return f"{dice.pick(TOWN_BEGINNINGS)} {_word(dice, 2, 2)}"
    if chance < 0.6:
        return f"{_word(dice, 1, 2)}-{_word(dice, 1, 2)}"
    return _word(dice, 2, 3)


def _word(dice: Dice, shortest: int, longest: int) -> str:
    """One capitalised invented word of that many syllables, at least three letters."""
    chance = dice.random()
    syllables = dice.between(shortest, longest)
    if chance < 0.55:
        word = _syllables(dice, syllables)
    elif chance < 0.8:
        word = _open_letters(dice, syllables)
    else:
        word = _odd_letters(dice, syllables)
    while len(word) < 3:
        word += dice.pick(VOWELS) + dice.pick(CONSONANTS)
    if dice.random() < 0.22:
        word = _accented(dice, word)
    return word[0].upper() + word[1:]


def _syllables(dice: Dice, count: int) -> str:
    onsets, nuclei, codas = dice.pick(INVENTORIES)
    pick = dice.pick
    parts: list[str] = []
    for place in range(count):
        parts += (pick(onsets), pick(nuclei))
        if dice.random() < (0.7 if place == count - 1 else 0.25):
            parts.append(pick(codas))
    return "".join(parts)


def _open_letters(dice: Dice, count: int) -> str:
    """Consonant and vowel in turn, any letter as likely as another."""
    pick = dice.pick
    return "".join([pick(CONSONANTS) + pick(VOWELS) for _ in range(count + 1)])


def _odd_letters(dice: Dice, count: int) -> str:
    """Clusters no language has, so that no piece of the tokenizer fits them well."""
    pick = dice.pick
    word = pick(CONSONANTS) if dice.random() < 0.5 else ""
    for _ in range(count):
        word += pick(VOWELS) + pick(CONSONANTS)
        if dice.random() < 0.4:
            word += pick(CONSONANTS)
    return word


def _accented(dice: Dice, word: str) -> str:
    places = [place for place, letter in enumerate(word) if letter in ACCENTS]
    if not places:
        return word
    place = dice.pick(places)
    return word[:place] + dice.pick(ACCENTS[word[place]]) + word[place + 1 :]

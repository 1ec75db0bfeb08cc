"""What a note says, before any language: drawn here, spoken by english.py, german.py and the others.

Kept out on purpose, because a right translation would need more than the sentence: pronouns, titles without a gender,
bare plurals, and numbers above ten.
"""

from __future__ import annotations

from typing import NamedTuple

from .dice import Dice
from .lexicon import PLACES, Adjective, Noun, Place, adjectives_of, nouns_of
from .names import family_name, town
from .verbs import PREPOSITIONS, TIMES, VERBS, Preposition, Time, Verb


class Phrase(NamedTuple):
    """A noun phrase: the old dog, a dog, three dogs, the teacher's dog, Mr Tolvik."""

    kind: str  # the, a, number, owned, title
    noun: Noun | None = None
    adjective: Adjective | None = None
    plural: bool = False
    number: int = 1
    owner: Phrase | None = None
    name: str = ""
    female: bool = False


class Where(NamedTuple):
    """A place: preposition and noun, or `in` and the name of a town."""

    preposition: Preposition
    place: Place | None
    town: str = ""


class Clause(NamedTuple):
    """Subject and predicate; `kind` is do, be, than, there or have."""

    kind: str
    tense: str  # past, pres, prog
    subject: Phrase
    verb: Verb | None = None
    object: Phrase | None = None
    adjective: Adjective | None = None
    very: bool = False
    negative: bool = False
    where: Where | None = None
    when: Time | None = None
    when_first: bool = False


class Sentence(NamedTuple):
    """A clause, or two joined by because, when, and, but."""

    main: Clause
    link: str = ""
    other: Clause | None = None


_OWNABLE = nouns_of("at")
_HAVEABLE = tuple(noun for noun in nouns_of("at") if noun.kinds.isdisjoint("o") or not noun.kinds.isdisjoint("ch"))
_PEOPLE = nouns_of("p")
_COUNTED = nouns_of("pat")
_PASSING = frozenset({"young", "tired", "happy", "hungry", "rich", "dirty", "strong"})
_LIVING = nouns_of("pa")


def draw_sentence(dice: Dice) -> Sentence:
    """One sentence whose combinations of subject, verb and object belong to this split."""
    chance = dice.random()
    if chance < 0.5:
        return Sentence(_does(dice, dice.pick(("past", "past", "pres", "prog"))))
    if chance < 0.58:
        return Sentence(_is(dice))
    if chance < 0.66:
        return Sentence(_than(dice))
    if chance < 0.74:
        return Sentence(_there(dice))
    if chance < 0.8:
        return Sentence(_has(dice))
    if chance < 0.88:
        return _because(dice)
    if chance < 0.95:
        return _when(dice)
    main = _does(dice, "past", simple=True)
    return Sentence(main, dice.pick(("and", "but")), _does(dice, "past", simple=True))


def _because(dice: Dice) -> Sentence:
    tense = dice.pick(("past", "past", "pres", "prog"))
    main = _does(dice, tense)
    if dice.chance(0.5) or tense != "past":
        reason = _is(dice, tense="past" if tense == "past" else "pres", bare=True)
    else:
        reason = _does(dice, "past", simple=True, single=True)
    return Sentence(main, "because", reason)


def _when(dice: Dice) -> Sentence:
    main = _does(dice, "past", simple=True)
    if dice.chance(0.25):
        while True:
            state = _is(dice, tense="past", bare=True)
            if state.adjective is not None and state.adjective.en in _PASSING:
                break
        return Sentence(main, "when", state._replace(very=False, negative=False))
    return Sentence(main, "when", _does(dice, "past", simple=True)._replace(negative=False))


def _does(dice: Dice, tense: str, *, simple: bool = False, single: bool = False) -> Clause:
    """A clause with a verb; `simple` names no time, `single` has one subject only."""
    while True:
        verb = dice.pick(VERBS)
        if tense not in verb.tenses:
            continue
        noun = dice.pick(verb.subjects)
        object_noun = dice.pick(verb.objects) if verb.objects else None
        if object_noun is not noun and dice.fits("clause", clause_key(noun, verb, object_noun)):
            break
    negative = tense != "prog" and dice.chance(0.2)
    subject = _subject(dice, noun, plain=negative, single=single)
    what = _object(dice, object_noun, plain=negative, avoid=noun) if object_noun else None
    where = _where(dice) if verb.placed and not negative and dice.chance(0.2 if simple else 0.4) else None
    when = None
    # "does not sing every day" would be another thing in Chinese, so the negated present has no time.
    if (tense == "pres" and not negative) or (tense == "past" and not simple and dice.chance(0.6)):
        when = dice.pick(TIMES[tense])
    if when is None and tense == "past" and not negative and subject.plural and verb.en[0] == verb.en[2]:
        # "the students read a book" may be past or present
        return _does(dice, tense, simple=simple, single=single)
    first = when is not None and dice.chance(0.4)
    return Clause("do", tense, subject, verb, what, None, False, negative, where, when, first)


def clause_key(noun: Noun, verb: Verb, object_noun: Noun | None) -> str:
    """What the split of clauses is hashed from; where Mr or Mrs stands instead of a noun, the name tells them apart."""
    return f"{noun.en} {verb.en[0]} {object_noun.en if object_noun else '-'}"


def _subject(dice: Dice, noun: Noun, *, plain: bool, single: bool) -> Phrase:
    chance = dice.random()
    if noun.person and chance < 0.25:
        return _titled(dice)
    if chance < 0.7 or plain or single:
        return Phrase("the", noun, _adjective(dice, noun), plural=not single and dice.chance(0.2))
    if not noun.person and chance < 0.8:
        return Phrase("owned", noun, owner=_owner(dice))
    if chance < 0.9:
        return _number(dice, noun)
    return Phrase("a", noun, _adjective(dice, noun))


def _object(dice: Dice, noun: Noun, *, plain: bool, avoid: Noun) -> Phrase:
    chance = dice.random()
    if noun.person and chance < 0.3:
        return _titled(dice)
    if chance < 0.35:
        return Phrase("the", noun, _adjective(dice, noun), plural=dice.chance(0.25))
    if noun in _OWNABLE and chance < 0.5:
        return Phrase("owned", noun, owner=_owner(dice, avoid))
    if chance < 0.7 and not plain:
        return _number(dice, noun)
    return Phrase("a", noun, _adjective(dice, noun))


def _titled(dice: Dice) -> Phrase:
    return Phrase("title", name=family_name(dice), female=dice.chance(0.5))


def _owner(dice: Dice, avoid: Noun | None = None) -> Phrase:
    if dice.chance(0.5):
        return _titled(dice)
    while (noun := dice.pick(_PEOPLE)) is avoid:
        pass
    return Phrase("the", noun)


def _number(dice: Dice, noun: Noun) -> Phrase:
    return Phrase("number", noun, _adjective(dice, noun), plural=True, number=dice.between(2, 10))


def _adjective(dice: Dice, noun: Noun) -> Adjective | None:
    return dice.pick(adjectives_of(noun)) if dice.chance(0.4) else None


def _where(dice: Dice) -> Where:
    if dice.chance(0.25):
        return Where(PREPOSITIONS[0], None, town(dice))
    return Where(dice.pick(PREPOSITIONS), dice.pick(PLACES))


def _described(dice: Dice, nouns: tuple[Noun, ...] = _COUNTED, degrees: bool = False) -> tuple[Noun, Adjective]:
    """A noun and what can be said of it, a combination of this split."""
    while True:
        noun = dice.pick(nouns)
        adjective = dice.pick(adjectives_of(noun))
        wanted = adjective.en_more if degrees else adjective.es_copula
        if wanted and dice.fits("clause", f"{noun.en} is {adjective.en}"):
            return noun, adjective


def _is(dice: Dice, tense: str = "", bare: bool = False) -> Clause:
    """Subject, is or was, adjective; `bare` is for a subordinate clause: one subject, no time."""
    tense = tense or dice.pick(("past", "pres"))
    noun, adjective = _described(dice, _LIVING if bare else _COUNTED)
    subject = _subject(dice, noun, plain=True, single=bare)
    if subject.adjective:
        subject = subject._replace(adjective=None)
    negative = dice.chance(0.25)
    when = dice.pick(TIMES["past"][:3]) if tense == "past" and not bare and dice.chance(0.4) else None
    very = not negative and dice.chance(0.3)
    first = when is not None and dice.chance(0.4)
    return Clause("be", tense, subject, None, None, adjective, very, negative, None, when, first)


def _than(dice: Dice) -> Clause:
    noun, adjective = _described(dice, degrees=True)
    subject = Phrase("the", noun, plural=dice.chance(0.2))
    if noun.person and dice.chance(0.4):
        subject = _titled(dice)
    while True:
        other_noun = dice.pick(_COUNTED)
        if other_noun is not noun and adjective in adjectives_of(other_noun):
            break
    other = Phrase("the", other_noun, plural=subject.plural)
    if noun.person and dice.chance(0.3):
        other = _titled(dice)
    return Clause("than", "pres", subject, None, other, adjective)


def _there(dice: Dice) -> Clause:
    while not dice.fits("clause", f"there {(noun := dice.pick(_COUNTED)).en} {(where := _where(dice)).preposition.en}"):
        pass
    subject = _number(dice, noun) if dice.chance(0.5) else Phrase("a", noun, _adjective(dice, noun))
    if dice.chance(0.5):
        return Clause("there", "pres", subject, where=where)
    when = dice.pick(TIMES["past"])
    return Clause("there", "past", subject, where=where, when=when, when_first=dice.chance(0.4))


def _has(dice: Dice) -> Clause:
    while True:
        noun, what = dice.pick(_PEOPLE), dice.pick(_HAVEABLE)
        if dice.fits("clause", f"{noun.en} have {what.en}"):
            break
    negative = dice.chance(0.25)
    subject = _titled(dice) if dice.chance(0.4) else Phrase("the", noun, _adjective(dice, noun))
    plain = negative or dice.chance(0.5)
    owned = Phrase("a", what, _adjective(dice, what)) if plain else _number(dice, what)
    return Clause("have", "pres", subject, None, owned, None, False, negative)

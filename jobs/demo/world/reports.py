"""Reports: five facts among filler and decoys, with the words counted."""

from __future__ import annotations

import math
from typing import NamedTuple

from .decoys import DECOYS
from .dice import Dice
from .fact_phrases import PARTITIONS, PHRASES, SHORT_PARTITIONS
from .facts import ACTIONS, THINGS, Facts, draw_amount, draw_date, draw_facts
from .filler import FILLER, SHORT_FILLER
from .names import person, town

SHORTEST = 20  # a report cannot hold its facts in fewer words
SLACK = 12  # between the least and the most words asked for
LONG_SHARE = 0.1
USUAL_MOST = 250
LONG_LEAST = 300
SHORT_REPORT = 60
SENTENCES_PER_PARAGRAPH = 6
OTHER_THINGS = ("canal", "park", "prison", "stadium", "airport", "cinema", "fountain", "castle", "tunnel", "garage")
ACTS = frozenset({"other_past", "other_base", "other_ing", "other_noun"})  # these may be the fact's own
OTHER_PASTS = ("closed", "moved", "demolished", "sold", "fenced in", "surveyed", "handed over", "lit up")


class Report(NamedTuple):
    """A body, the facts in it, and every value that stands in it as a decoy."""

    body: str
    words: int
    facts: Facts
    decoys: frozenset[str]


class Others:
    """Draws decoy values of this split, each unlike every fact."""

    def __init__(self, dice: Dice, facts: Facts) -> None:
        self.dice = dice
        self.facts = facts
        self.used: set[str] = set()
        given, family = facts.who.split(" ")
        self.taken = {given, family, facts.town}

    def __getitem__(self, slot: str) -> str:
        """A fresh value for the slot, as a template asks for it."""
        value = getattr(self, slot)()
        if slot not in ACTS:
            self.used.add(value)
        return value

    def other_who(self) -> str:
        """Another person; neither part of the name is shared."""
        while True:
            name = person(self.dice)
            if self.taken.isdisjoint(name.split(" ")):
                return name

    def other_town(self) -> str:
        """Another town."""
        while (name := town(self.dice)) in self.taken:
            pass
        return name

    def other_date(self) -> str:
        """Another date, whole and in part: not the fact's day number in another month, nor its month."""
        date = self.facts.date
        while (other := draw_date(self.dice)).name is date.name or (other.day and other.day == date.day):
            pass
        return other.en

    def other_amount(self) -> str:
        """Another number; the currency may be the same."""
        while (other := draw_amount(self.dice)).number == self.facts.amount.number:
            pass
        return other.en

    def other_thing(self) -> str:
        """Another building, which may be one that other reports are about."""
        if self.dice.chance(0.4):
            return self.dice.pick(OTHER_THINGS)
        while (thing := self.dice.pick(THINGS)) is self.facts.thing:
            pass
        return thing.en

    def other_past(self) -> str:
        """Anything that was once done to another building, perhaps the very same."""
        return self.dice.pick(OTHER_PASTS) if self.dice.chance(0.4) else self.dice.pick(ACTIONS).past

    def other_base(self) -> str:
        """What may be done to another building."""
        return self.dice.pick(ACTIONS).base

    def other_ing(self) -> str:
        """Doing it."""
        return self.dice.pick(ACTIONS).ing

    def other_noun(self) -> str:
        """The act of it."""
        return self.dice.pick(ACTIONS).noun


class FactWords(dict[str, str]):
    """The values of the facts' templates; what is missing is a decoy."""

    def __init__(self, facts: Facts, others: Others) -> None:
        self.others = others
        super().__init__(
            who=facts.who,
            town=facts.town,
            date=facts.date.en,
            amount=facts.amount.en,
            thing=facts.thing.en,
            past=facts.action.past,
            ing=facts.action.ing,
            noun=facts.action.noun,
        )

    def __missing__(self, slot: str) -> str:
        return self.others[slot]


def draw_report(dice: Dice, min_words: int, max_words: int) -> Report:
    """A report of min_words to max_words words; most have at most 250 of them.

    Raises ValueError where the bounds leave no room for five facts.
    """
    if min_words < 1 or max_words < max(min_words + SLACK, SHORTEST + SLACK):
        raise ValueError(
            f"a report needs max_words of at least {SHORTEST + SLACK} and {SLACK} more than min_words; "
            f"got {min_words} to {max_words}"
        )
    facts = draw_facts(dice)
    others = Others(dice, facts)
    goal = _goal(dice, min_words, max_words)
    while True:
        sentences, words = _fact_sentences(dice, facts, others, goal)
        if words <= max_words:
            break
    first = sentences.pop(0) if dice.chance(0.4) else ""
    words = _fill(dice, others, sentences, words, goal, min_words, max_words)
    dice.rng.shuffle(sentences)
    if first:
        sentences.insert(0, first)
    return Report(_paragraphs(dice, sentences), words, facts, frozenset(others.used))


def _goal(dice: Dice, low: int, high: int) -> int:
    """Log-uniform: short reports are more frequent than long ones."""
    most = min(high, USUAL_MOST)
    if high > LONG_LEAST and dice.chance(LONG_SHARE):
        low, most = max(low, LONG_LEAST), high
    most = max(most, low)
    return round(low * math.exp(dice.random() * math.log(most / low)))


def _fact_sentences(dice: Dice, facts: Facts, others: Others, goal: int) -> tuple[list[str], int]:
    words = FactWords(facts, others)
    parts = dice.pick(SHORT_PARTITIONS if goal < SHORT_REPORT else PARTITIONS)
    sentences = [dice.pick(PHRASES[part]).say(dice, words) for part in parts]
    return sentences, _count(sentences)


def _fill(dice: Dice, others: Others, sentences: list[str], words: int, goal: int, low: int, high: int) -> int:
    """Add decoys and filler up to about `goal` words, never more than `high`; the new count."""
    decoys = dice.between(1, 2 + goal // 40) if goal >= SHORT_REPORT else dice.between(0, 1)
    while words < goal:
        if decoys:
            decoys -= 1
            sentence = dice.pick(DECOYS).say(dice, others)
        else:
            sentence = dice.pick(FILLER).say(dice, {})
        size = len(sentence.split())
        if words + size > high:
            if words >= low:
                break
            sentence = dice.pick(SHORT_FILLER).say(dice, {})
            size = len(sentence.split())
            if words + size > high:
                continue
        sentences.append(sentence)
        words += size
    return words


def _count(sentences: list[str]) -> int:
    return sum(len(sentence.split()) for sentence in sentences)


def _paragraphs(dice: Dice, sentences: list[str]) -> str:
    if len(sentences) < 2 * SENTENCES_PER_PARAGRAPH:
        return " ".join(sentences)
    size = SENTENCES_PER_PARAGRAPH + dice.between(-2, 2)
    return "\n\n".join(" ".join(sentences[at : at + size]) for at in range(0, len(sentences), size))

"""Notes in English."""

from __future__ import annotations

from .lexicon import VOWELS
from .meaning import Clause, Phrase, Sentence, Where

NUMBERS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_LINKS = {"because": " because ", "when": " when ", "and": ", and ", "but": ", but "}


def sentence(meaning: Sentence) -> str:
    """The sentence with its capital and full stop."""
    text = clause(meaning.main)
    if meaning.other is not None:
        text += _LINKS[meaning.link] + clause(meaning.other)
    return text[0].upper() + text[1:] + "."


def phrase(meaning: Phrase) -> str:
    """A noun phrase."""
    if meaning.kind == "title":
        return f"{'Mrs' if meaning.female else 'Mr'} {meaning.name}"
    noun = meaning.noun
    assert noun is not None
    words = noun.en_pl if meaning.plural else noun.en
    if meaning.owner is not None:
        return f"{phrase(meaning.owner)}'s {words}"
    if meaning.adjective:
        words = f"{meaning.adjective.en} {words}"
    if meaning.kind == "the":
        return f"the {words}"
    if meaning.kind == "number":
        return f"{NUMBERS[meaning.number]} {words}"
    return f"{'an' if words[0] in VOWELS else 'a'} {words}"


def where(meaning: Where) -> str:
    """A place with its preposition."""
    if meaning.place is None:
        return f"in {meaning.town}"
    return f"{meaning.preposition.en} the {meaning.place.en}"


def clause(meaning: Clause) -> str:
    """A clause without capital or full stop; the order is the same in subordinate ones."""
    words = [_verb_phrase(meaning)]
    if meaning.where is not None:
        words.append(where(meaning.where))
    if meaning.when is not None:
        words.insert(0 if meaning.when_first else len(words), meaning.when.en)
    return " ".join(words)


def _be(meaning: Clause) -> str:
    if meaning.tense == "past":
        return "were" if meaning.subject.plural else "was"
    return "are" if meaning.subject.plural else "is"


def _verb_phrase(meaning: Clause) -> str:
    subject = phrase(meaning.subject)
    no = " not" if meaning.negative else ""
    match meaning.kind:
        case "there":
            return f"there {_be(meaning)} {subject}"
        case "be":
            assert meaning.adjective is not None
            return f"{subject} {_be(meaning)}{no} {'very ' if meaning.very else ''}{meaning.adjective.en}"
        case "than":
            assert meaning.adjective is not None and meaning.object is not None
            return f"{subject} {_be(meaning)} {meaning.adjective.en_more} than {phrase(meaning.object)}"
        case "have":
            assert meaning.object is not None
            has = "does not have" if meaning.negative else "has"
            return f"{subject} {has} {phrase(meaning.object)}"
    return f"{subject} {_does(meaning)}"


def _does(meaning: Clause) -> str:
    assert meaning.verb is not None
    base, third, past, ing, after = meaning.verb.en
    plural = meaning.subject.plural
    if meaning.tense == "prog":
        verb = f"{_be(meaning)} {ing}"
    elif meaning.tense == "past":
        verb = f"did not {base}" if meaning.negative else past
    elif meaning.negative:
        verb = f"{'do' if plural else 'does'} not {base}"
    else:
        verb = base if plural else third
    words = [verb, after, phrase(meaning.object) if meaning.object is not None else ""]
    return " ".join(word for word in words if word)

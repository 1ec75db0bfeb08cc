"""Notes in German: case and adjective endings, verb second, verb last in subordinate clauses, separable verbs."""

from __future__ import annotations

from .lexicon import Adjective
from .meaning import Clause, Phrase, Sentence, Where

NUMBERS = ("", "ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn")
THE = {
    "nom": {"m": "der", "f": "die", "n": "das", "pl": "die"},
    "acc": {"m": "den", "f": "die", "n": "das", "pl": "die"},
    "dat": {"m": "dem", "f": "der", "n": "dem", "pl": "den"},
    "gen": {"m": "des", "f": "der", "n": "des", "pl": "der"},
}
AN = {
    "nom": {"m": "ein", "f": "eine", "n": "ein"},
    "acc": {"m": "einen", "f": "eine", "n": "ein"},
    "dat": {"m": "einem", "f": "einer", "n": "einem"},
}
# After the: -e where the article shows the case, else -en. After ein: the article's own ending where ein has none.
WEAK = {
    "nom": {"m": "e", "f": "e", "n": "e", "pl": "en"},
    "acc": {"m": "en", "f": "e", "n": "e", "pl": "en"},
    "dat": {"m": "en", "f": "en", "n": "en", "pl": "en"},
}
MIXED = {
    "nom": {"m": "er", "f": "e", "n": "es"},
    "acc": {"m": "en", "f": "e", "n": "es"},
    "dat": {"m": "en", "f": "en", "n": "en"},
}
STRONG_PLURAL = {"nom": "e", "acc": "e", "dat": "en"}
_LINKS = {"because": ", weil ", "when": ", als ", "and": ", und ", "but": ", aber "}


def sentence(meaning: Sentence) -> str:
    """The sentence with its capital and full stop."""
    text = clause(meaning.main)
    if meaning.other is not None:
        last = meaning.link in ("because", "when")
        text += _LINKS[meaning.link] + clause(meaning.other, verb_last=last)
    return text[0].upper() + text[1:] + "."


def phrase(meaning: Phrase, case: str, *, no: bool = False) -> str:
    """A noun phrase in nom, acc or dat (an owner: gen); `no` makes ein into kein."""
    if meaning.kind == "title":
        title = "Frau" if meaning.female else "Herr" if case == "nom" else "Herrn"
        return f"{title} {meaning.name}"
    noun = meaning.noun
    assert noun is not None
    gender = "pl" if meaning.plural else noun.de_gender
    word = _noun(meaning, case)
    if meaning.owner is not None:
        if meaning.owner.kind == "title":
            return f"{THE[case][gender]} {word} von {phrase(meaning.owner, 'dat')}"
        return f"{THE[case][gender]} {word} {phrase(meaning.owner, 'gen')}"
    adjective = meaning.adjective
    if meaning.kind == "the":
        return _join(THE[case][gender], adjective, WEAK[case][gender] if case != "gen" else "en", word)
    if meaning.kind == "number":
        return _join(NUMBERS[meaning.number], adjective, STRONG_PLURAL[case], word)
    return _join(("k" if no else "") + AN[case][gender], adjective, MIXED[case][gender], word)


def _noun(meaning: Phrase, case: str) -> str:
    noun = meaning.noun
    assert noun is not None
    if meaning.plural:
        return noun.de_pl + ("n" if case == "dat" and noun.de_pl[-1] not in "ns" else "")
    return {"nom": noun.de, "gen": noun.de_gen}.get(case, noun.de_oblique)


def _join(article: str, adjective: Adjective | None, ending: str, word: str) -> str:
    return f"{article} {adjective.de}{ending} {word}" if adjective else f"{article} {word}"


def where(meaning: Where) -> str:
    """A place with its preposition; in dem is im."""
    if meaning.place is None:
        return f"in {meaning.town}"
    article = THE["dat"][meaning.place.de_gender]
    if meaning.preposition.de == "in" and article == "dem":
        return f"im {meaning.place.de}"
    return f"{meaning.preposition.de} {article} {meaning.place.de}"


def clause(meaning: Clause, *, verb_last: bool = False) -> str:
    """A main clause, or a subordinate one with its verb last."""
    finite, middle, prefix = _predicate(meaning)
    when = [meaning.when.de] if meaning.when is not None else []
    place = [where(meaning.where)] if meaning.where is not None else []
    if meaning.kind == "there":
        front = when if meaning.when_first else place
        rest = place if meaning.when_first else when
        return " ".join([*front, finite, "es", *rest, *middle])
    subject = phrase(meaning.subject, "nom")
    now = ["gerade"] if meaning.tense == "prog" else []
    if verb_last:
        return " ".join([subject, *now, *when, *place, *middle, prefix + finite])
    tail = [prefix] if prefix else []
    if meaning.when_first:
        return " ".join([*when, finite, subject, *now, *place, *middle, *tail])
    return " ".join([subject, finite, *now, *when, *place, *middle, *tail])


def _predicate(meaning: Clause) -> tuple[str, list[str], str]:
    """The finite verb, what follows time and place, and the separable prefix."""
    past, plural = meaning.tense == "past", meaning.subject.plural
    no = ["nicht"] if meaning.negative else []
    what, adjective = meaning.object, meaning.adjective
    match meaning.kind:
        case "there":
            return "gab" if past else "gibt", [phrase(meaning.subject, "acc")], ""
        case "be":
            assert adjective is not None
            finite = ("waren" if plural else "war") if past else ("sind" if plural else "ist")
            return finite, [*no, *(["sehr"] if meaning.very else []), _predicative(adjective)], ""
        case "than":
            assert adjective is not None and what is not None
            return "sind" if plural else "ist", [f"{adjective.de_more} als {phrase(what, 'nom')}"], ""
        case "have":
            assert what is not None
            return "hat", [phrase(what, "acc", no=meaning.negative)], ""
    verb = meaning.verb
    assert verb is not None
    return verb.de[2 * past + plural], _complement(meaning, no), verb.de_prefix


def _predicative(adjective: Adjective) -> str:
    return "müde" if adjective.de == "müd" else adjective.de


def _complement(meaning: Clause, no: list[str]) -> list[str]:
    """The object and nicht: after a definite object, before auf, and kein instead of nicht ein."""
    verb, what = meaning.verb, meaning.object
    assert verb is not None
    if what is None:
        return no
    if verb.de_object == "auf":
        return [*no, f"auf {phrase(what, 'acc')}"]
    if what.kind == "a":
        return [phrase(what, verb.de_object, no=bool(no))]
    return [phrase(what, verb.de_object), *no]

"""Notes in Spanish: gender and number, the adjective after its noun, ser and estar, the personal a."""

from __future__ import annotations

from .meaning import Clause, Phrase, Sentence, Where

NUMBERS = ("", "un", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "diez")
COPULA = {
    ("ser", "pres"): ("es", "son"),
    ("ser", "past"): ("era", "eran"),
    ("estar", "pres"): ("está", "están"),
    ("estar", "past"): ("estaba", "estaban"),
}
_LINKS = {"because": " porque ", "when": " cuando ", "and": " y ", "but": ", pero "}


def sentence(meaning: Sentence) -> str:
    """The sentence with its capital and full stop."""
    text = clause(meaning.main)
    if meaning.other is not None:
        text += _LINKS[meaning.link] + clause(meaning.other)
    return text[0].upper() + text[1:] + "."


def is_feminine(meaning: Phrase) -> bool:
    """The grammatical gender of the phrase."""
    return meaning.female if meaning.noun is None else meaning.noun.es_gender == "f"


def _form(meaning: Phrase) -> int:
    """Which of the four forms an adjective takes: m, f, m plural, f plural."""
    return 2 * meaning.plural + is_feminine(meaning)


def phrase(meaning: Phrase, *, no: bool = False) -> str:
    """A noun phrase; `no` makes un into ningún."""
    if meaning.kind == "title":
        return f"{'la señora' if meaning.female else 'el señor'} {meaning.name}"
    noun = meaning.noun
    assert noun is not None
    form = _form(meaning)
    words = noun.es_pl if meaning.plural else noun.es
    if meaning.adjective:
        words += " " + meaning.adjective.es[form]
    article = ("el", "la", "los", "las")[form]
    if meaning.owner is not None:
        return f"{article} {words} {contract('de', phrase(meaning.owner))}"
    if meaning.kind == "the":
        return f"{article} {words}"
    if meaning.kind == "number":
        return f"{NUMBERS[meaning.number]} {words}"
    return f"{(('ningún', 'ninguna') if no else ('un', 'una'))[form]} {words}"


def contract(preposition: str, words: str) -> str:
    """De el is del and a el is al, also at the end of a longer preposition."""
    if words.startswith("el ") and preposition.split(" ")[-1] in ("de", "a"):
        return f"{preposition}l {words[3:]}"
    return f"{preposition} {words}"


def where(meaning: Where) -> str:
    """A place with its preposition."""
    if meaning.place is None:
        return f"en {meaning.town}"
    article = "la" if meaning.place.es_gender == "f" else "el"
    return contract(meaning.preposition.es, f"{article} {meaning.place.es}")


def clause(meaning: Clause) -> str:
    """A clause without capital or full stop; the order is the same in subordinate ones."""
    words = [_verb_phrase(meaning)]
    if meaning.where is not None:
        words.append(where(meaning.where))
    if meaning.when is not None:
        words.insert(0 if meaning.when_first else len(words), meaning.when.es)
    return " ".join(words)


def _verb_phrase(meaning: Clause) -> str:
    subject, what, adjective = phrase(meaning.subject), meaning.object, meaning.adjective
    plural, no = meaning.subject.plural, "no " if meaning.negative else ""
    match meaning.kind:
        case "there":
            return f"{'había' if meaning.tense == 'past' else 'hay'} {subject}"
        case "be":
            assert adjective is not None
            verb = COPULA[adjective.es_copula, meaning.tense][plural]
            return f"{subject} {no}{verb} {'muy ' if meaning.very else ''}{adjective.es[_form(meaning.subject)]}"
        case "than":
            assert adjective is not None and what is not None
            verb = COPULA[adjective.es_copula, "pres"][plural]
            return f"{subject} {verb} más {adjective.es[_form(meaning.subject)]} que {phrase(what)}"
        case "have":
            assert what is not None
            return f"{subject} {no}tiene {phrase(what, no=meaning.negative)}"
    return f"{subject} {no}{_does(meaning)}"


def _does(meaning: Clause) -> str:
    verb, plural = meaning.verb, meaning.subject.plural
    assert verb is not None
    if meaning.tense == "prog":
        words = f"{COPULA['estar', 'pres'][plural]} {verb.es[4]}"
    else:
        words = verb.es[2 * (meaning.tense == "past") + plural]
    if verb.es_se:
        words = f"se {words}"
    return f"{words} {_object(meaning.object, meaning.negative, verb.es_a)}" if meaning.object is not None else words


def _object(what: Phrase, negative: bool, animals: bool) -> str:
    """With a before people, and where the verb wants it before a certain animal."""
    words = phrase(what, no=negative)
    known = what.kind in ("the", "owned")
    if what.noun is None or what.noun.person or (animals and known and "a" in what.noun.kinds):
        return contract("a", words)
    return words

"""Notes in Arabic: verb first, agreement by gender, the dual, numbers three to ten, nominal sentences.

Written without vowel signs. A verb before its subject stays singular, so only the gender has to agree; plurals of
things and animals are feminine singular to their adjectives and verbs.
"""

from __future__ import annotations

from .lexicon import Adjective, Noun
from .meaning import Clause, Phrase, Sentence, Where

# With a masculine noun, with a feminine one.
NUMBERS = {
    3: ("ثلاثة", "ثلاث"),
    4: ("أربعة", "أربع"),
    5: ("خمسة", "خمس"),
    6: ("ستة", "ست"),
    7: ("سبعة", "سبع"),
    8: ("ثمانية", "ثماني"),
    9: ("تسعة", "تسع"),
    10: ("عشرة", "عشر"),
}
_LINKS = {"because": " لأن ", "when": " عندما ", "and": " و", "but": "، لكن "}
_DEFINITE = {"امرأة": "المرأة"}


def sentence(meaning: Sentence) -> str:
    """The sentence with its full stop; after لأن the subject comes first."""
    text = clause(meaning.main)
    if meaning.other is not None:
        text += _LINKS[meaning.link] + clause(meaning.other, subject_first=meaning.link == "because")
    return text + "."


def is_feminine(meaning: Phrase) -> bool:
    """Whether verbs and adjectives agree in the feminine singular, or feminine of people."""
    noun = meaning.noun
    if noun is None:
        return meaning.female
    many = meaning.plural and not (meaning.kind == "number" and meaning.number == 2)
    return noun.ar_gender == "f" or (many and not noun.person)


def phrase(meaning: Phrase, case: str) -> str:
    """A noun phrase in nom, acc or gen."""
    if meaning.kind == "title":
        return f"{'السيدة' if meaning.female else 'السيد'} {meaning.name}"
    noun, adjective = meaning.noun, meaning.adjective
    assert noun is not None
    if meaning.owner is not None:
        return f"{noun.ar} {phrase(meaning.owner, 'gen')}"
    if meaning.kind == "the":
        word = _plural(noun.ar_pl, case) if meaning.plural else noun.ar
        words = definite(word)
        return f"{words} {definite(_agreeing(adjective, meaning, case))}" if adjective else words
    if meaning.kind == "number" and meaning.number > 2:
        number = NUMBERS[meaning.number][noun.ar_gender == "f"]
        words = f"{number} {_plural(noun.ar_pl, 'gen')}"
        return f"{words} {_agreeing(adjective, meaning, 'gen')}" if adjective else words
    if meaning.kind == "number":
        words = _dual(noun.ar, case)
        return f"{words} {_dual(_singular(adjective, noun), case)}" if adjective else words
    words = _indefinite(noun.ar, case)
    if not adjective:
        return words
    return f"{words} {_indefinite(_singular(adjective, noun), case, diptote=adjective.diptote)}"


def definite(word: str) -> str:
    """The word with its article."""
    return _DEFINITE.get(word) or f"ال{word}"


def _indefinite(word: str, case: str, *, diptote: bool = False) -> str:
    """The accusative is written with alif, but after ة, اء, ى and sound plurals, and on words without tanwin."""
    if case != "acc" or diptote or word.endswith(("ة", "اء", "ى", "ات", "ين")):
        return word
    return word + "ا"


def _plural(word: str, case: str) -> str:
    """Sound masculine plurals in -un are -in after the nominative; broken ones do not change."""
    return word[:-2] + "ين" if word.endswith("ون") and case != "nom" else word


def _dual(word: str, case: str) -> str:
    if word.endswith("ة"):
        word = word[:-1] + "ت"
    elif word.endswith("اء"):
        word = word[:-1] + "و"
    return word + ("ان" if case == "nom" else "ين")


def _singular(adjective: Adjective, noun: Noun) -> str:
    return adjective.ar[noun.ar_gender == "f"]


def _agreeing(adjective: Adjective, meaning: Phrase, case: str) -> str:
    """The adjective in the gender and number of the phrase."""
    noun = meaning.noun
    if meaning.plural and noun is not None and noun.person:
        if noun.ar_gender == "f":
            return adjective.ar[1][:-1] + "ات"
        return _plural(adjective.ar[2], case)
    return adjective.ar[is_feminine(meaning)]


def where(meaning: Where) -> str:
    """A place with its preposition."""
    if meaning.place is None:
        return f"في {meaning.town}"
    return f"{meaning.preposition.ar} {meaning.place.ar}"


def clause(meaning: Clause, *, subject_first: bool = False) -> str:
    """A clause without its full stop; `subject_first` as after لأن."""
    words = [_predicate(meaning, subject_first)]
    if meaning.where is not None:
        words.append(where(meaning.where))
    if meaning.when is not None:
        words.insert(0 if meaning.when_first else len(words), meaning.when.ar)
    return " ".join(words)


def _predicate(meaning: Clause, subject_first: bool) -> str:
    subject = phrase(meaning.subject, "acc" if subject_first else "nom")
    what, adjective, she = meaning.object, meaning.adjective, is_feminine(meaning.subject)
    match meaning.kind:
        case "there":
            was = ("كانت " if she else "كان ") if meaning.tense == "past" else ""
            return f"{was}هناك {subject}"
        case "be":
            return _is(meaning, subject, she, subject_first)
        case "than":
            assert adjective is not None and what is not None
            more, _, accusative = adjective.ar_more.partition(" ")
            return f"{subject} {more} {accusative + ' ' if accusative else ''}من {phrase(what, 'gen')}"
        case "have":
            assert what is not None
            no = "ليس " if meaning.negative else ""
            return f"{no}لدى {phrase(meaning.subject, 'gen')} {phrase(what, 'nom')}"
    verb = _verb(meaning, she)
    words = [subject, verb] if subject_first else [verb, subject]
    return " ".join(words + _object(meaning))


def _is(meaning: Clause, subject: str, she: bool, subject_first: bool) -> str:
    """Nothing in the present, كان in the past, ليس for not: the last two with the accusative."""
    adjective = meaning.adjective
    assert adjective is not None
    past, no = meaning.tense == "past", meaning.negative
    case = "acc" if past or no else "nom"
    word = _indefinite(_agreeing(adjective, meaning.subject, case), case, diptote=adjective.diptote)
    very = " جدا" if meaning.very else ""
    if past:
        verb = (("لم تكن" if she else "لم يكن") if no else ("كانت" if she else "كان")) + " "
    else:
        verb = ("ليست " if she else "ليس ") if no else ""
    start = f"{subject} {verb}" if subject_first else f"{verb}{subject} "
    return f"{start}{word}{very}"


def _verb(meaning: Clause, she: bool) -> str:
    assert meaning.verb is not None
    past_m, past_f, present, jussive = meaning.verb.ar
    if meaning.tense == "past" and not meaning.negative:
        return past_f if she else past_m
    form = jussive if meaning.tense == "past" else present
    if she:
        form = "ت" + form[1:]
    if not meaning.negative:
        return form
    return f"لم {form}" if meaning.tense == "past" else f"لا {form}"


def _object(meaning: Clause) -> list[str]:
    verb, what = meaning.verb, meaning.object
    if verb is None or what is None:
        return []
    if verb.ar_object:
        return [verb.ar_object, phrase(what, "gen")]
    return [phrase(what, "acc")]

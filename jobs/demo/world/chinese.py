"""Notes in Chinese: measure words, time and place before the verb, 了, 没有, 不 and 正在."""

from __future__ import annotations

from .meaning import Clause, Phrase, Sentence, Where

NUMBERS = ("", "一", "两", "三", "四", "五", "六", "七", "八", "九", "十")


def sentence(meaning: Sentence) -> str:
    """The sentence with its full stop; a reason and a time come before what they belong to."""
    main = clause(meaning.main)
    if meaning.other is None:
        return f"{main}。"
    match meaning.link:
        case "because":
            return f"因为{clause(meaning.other)}，所以{main}。"
        case "when":
            return f"{clause(meaning.other, bare=True)}的时候，{main}。"
        case "but":
            return f"{main}，但是{clause(meaning.other)}。"
    return f"{main}，{clause(meaning.other)}。"


def phrase(meaning: Phrase, *, bare: bool = False) -> str:
    """A noun phrase; `bare` leaves out 一 and its measure word, as after a negation."""
    if meaning.kind == "title":
        return f"{meaning.name}{'女士' if meaning.female else '先生'}"
    noun = meaning.noun
    assert noun is not None
    words = (meaning.adjective.zh if meaning.adjective else "") + noun.zh
    if meaning.owner is not None:
        return f"{phrase(meaning.owner)}的{words}"
    if meaning.kind == "the":
        return f"那些{words}" if meaning.plural else f"那{noun.zh_measure}{words}"
    if bare:
        return words
    return f"{NUMBERS[meaning.number]}{noun.zh_measure}{words}"


def where(meaning: Where) -> str:
    """The place itself, without 在."""
    return meaning.town if meaning.place is None else meaning.place.zh + meaning.preposition.zh


def clause(meaning: Clause, *, bare: bool = False) -> str:
    """A clause; `bare` has no 了 and no 很, as before 的时候."""
    subject = phrase(meaning.subject)
    when = meaning.when.zh if meaning.when is not None else ""
    if meaning.kind == "there":
        assert meaning.where is not None
        return f"{when}{where(meaning.where)}有{subject}"
    start = f"{when}{subject}" if meaning.when_first else f"{subject}{when}"
    return start + _predicate(meaning, bare)


def _predicate(meaning: Clause, bare: bool) -> str:
    what, adjective = meaning.object, meaning.adjective
    match meaning.kind:
        case "be":
            assert adjective is not None
            degree = "不" if meaning.negative else "" if bare else "非常" if meaning.very else "很"
            return degree + adjective.zh_pred
        case "than":
            assert adjective is not None and what is not None
            return f"比{phrase(what)}{adjective.zh_pred}"
        case "have":
            assert what is not None
            return f"{'没有' if meaning.negative else '有'}{phrase(what, bare=meaning.negative)}"
    return _does(meaning, bare)


def _does(meaning: Clause, bare: bool) -> str:
    verb = meaning.verb
    assert verb is not None
    past = meaning.tense == "past"
    now = "正在" if meaning.tense == "prog" else ""
    place = where(meaning.where) if meaning.where is not None else ""
    if place and not now:  # 正在 is followed by the place at once
        place = f"在{place}"
    no = ("没有" if past else "不") if meaning.negative else ""
    action = verb.zh[past and not meaning.negative and not bare]
    what = phrase(meaning.object, bare=meaning.negative) if meaning.object is not None else ""
    return f"{now}{place}{no}{action}{what}"

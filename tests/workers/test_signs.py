"""Signs of trouble that need no reference."""

from __future__ import annotations

import sys

import pytest

from workers.score import PackageMissing
from workers.score.languages import check_detector, language_check
from workers.score.signs import copied_share, loop_share, repeated_share
from workers.score.text import words

PLAIN = (
    "The harbour was built in the twelfth century by merchants from the north. Ships brought grain, salt and cloth, "
    "and took wine and wool away again. After the flood of 1687 the town moved uphill."
)


def loop(text: str) -> float:
    return loop_share(text, words(text))


@pytest.mark.parametrize(
    "text",
    [
        "it is what it is " * 20,
        PLAIN + " and so on" * 40,
        "哈" * 60,
        "hahahahahahahahahahahahahahahaha",
        "这座城市很古老。" * 8,
        "1. One 1. One 1. One 1. One",
        "?" * 80,
    ],
)
def test_loops_are_seen(text: str) -> None:
    assert loop(text) >= 0.25


@pytest.mark.parametrize(
    "text", ["", "no", "no no", PLAIN, "one two three four five six seven eight nine ten", "a" * 7]
)
def test_plain_texts_are_none(text: str) -> None:
    assert loop(text) < 0.25


def test_repetition_with_something_in_between() -> None:
    text = " ".join(f"The town has a long and proud history of trade, chapter {n}." for n in range(12))
    assert loop(text) < 0.25
    assert repeated_share(words(text)) > 0.5
    assert repeated_share(words(PLAIN)) == 0


def test_copies() -> None:
    source = words(PLAIN)
    assert copied_share(words(PLAIN[:73]), source) == 1
    assert copied_share(words("Merchants founded a port; a flood made them leave it for the hill"), source) < 0.2
    half = words("Ships brought grain, salt and cloth whereas nothing whatever came back by road")
    assert copied_share(half, source) == pytest.approx(6 / 13)
    assert copied_share(words("the town"), source) == 1, "fewer words than an n-gram: the whole text"
    assert copied_share([], source) == 0
    assert copied_share(["a"], []) == 0


TEXTS = {
    "en": PLAIN,
    "de": "Der Hafen wurde im zwölften Jahrhundert von Kaufleuten aus dem Norden gebaut.",
    "fr": "Le port fut construit au douzième siècle par des marchands venus du nord.",
    "zh-CN": "这个港口是十二世纪由来自北方的商人建造的。",
    "ja": "この港は十二世紀に北から来た商人によって建てられた。",
    "ar": "بني الميناء في القرن الثاني عشر على يد تجار من الشمال",
    "ru": "Порт был построен в двенадцатом веке купцами с севера.",
    "pt-BR": "O porto foi construído no século doze por mercadores vindos do norte.",
    "nb": "Havnen ble bygget på tolvhundretallet av kjøpmenn fra nord.",
}


@pytest.mark.parametrize("language", TEXTS)
def test_languages(language: str) -> None:
    check = language_check(language)
    assert check is not None
    assert check(TEXTS[language]) is None
    others = {name: check(text) for name, text in TEXTS.items() if name != language}
    assert others == {name: {"nb": "no"}.get(name, name.split("-")[0]) for name in others}


def test_what_no_detector_can_tell_is_not_wrong() -> None:
    check = language_check("de")
    assert check is not None
    for text in ("OK", "1997", "Berlin, Paris", "3 × 4 = 12", "http://example.com/a"):
        assert check(text) is None, text
    assert language_check("no")("Havnen blev bygget i det tolvte århundrede.") is None, "Danish and Norwegian"
    assert language_check(None) is None
    assert language_check("tlh") is None


def test_noise_is_no_language() -> None:
    assert language_check("en")("qzx vvk jjq wrrt zzpl kkqx bnnv xxqw ptrz vkkq jwwx zzqp hhtr vvbn") == "zxx"


def test_a_missing_detector_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(PackageMissing, match=r"the check of languages needs the package py3langid: pip install"):
        check_detector()

"""Is a text in the language it was asked in? py3langid's answer, with what it cannot tell apart left alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from .packages import need

# Written so alike, or so often in each other's words, that a short text does not tell.
_CLOSE = [
    {"no", "nb", "nn", "da"},
    {"hr", "bs", "sr", "sh"},
    {"id", "ms"},
    {"zh", "yue", "wuu"},
    {"ar", "arz", "ary"},
    {"fil", "tl"},
    {"uz", "uzs"},
    {"om", "gaz"},
    {"ku", "sdh", "kmr", "ckb"},
    {"en", "pcm"},
    {"gl", "pt"},
]
_NAMES = {"fil": "tl", "nb": "no", "sh": "hr", "ckb": "ku", "kmr": "ku", "iw": "he"}
# Wrong: another language is likely and the asked one is not. The detector's probabilities are calibrated by length.
_LIKELY, _UNLIKELY = 0.5, 0.1
_LONGEST = 2000


def check_detector() -> None:
    """PackageMissing when the detector, or what cuts texts into words beside it, is not installed."""
    need("py3langid", "the check of languages")
    need("regex", "counting words")


def language_check(language: str | None) -> Callable[[str], str | None] | None:
    """A function that names the language a text is in when it is not `language`; None when that cannot be checked.

    `zxx` is what is no language at all: markup, numbers, noise.
    """
    base = (language or "").split("-")[0].lower()
    detector = _detector()
    label = _NAMES.get(base, base)
    if label not in detector.labels:
        return None
    close = next((group for group in _CLOSE if base in group or label in group), {label})

    def other(text: str) -> str | None:
        ranked = detector.rank(text[:_LONGEST])
        found, likely = ranked[0]
        if found in close or likely < _LIKELY:
            return None
        asked = sum(probability for name, probability in ranked if name in close)
        return str(found) if asked < _UNLIKELY else None

    return other


@cache
def _detector() -> Any:
    langid = need("py3langid.langid", "the check of languages")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)

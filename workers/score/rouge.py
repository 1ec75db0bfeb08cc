"""ROUGE through the rouge-score package, with words in every script where its own tokenizer knows only a to z."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .packages import need
from .statistics import Statistics, mean_statistics
from .text import words


def tokenizer_for(language: str | None) -> str:
    """`ascii` (rouge-score's own) for English and where no language is named, else `unicode`."""
    return "ascii" if (language or "en").split("-")[0] == "en" else "unicode"


def rouge(
    types: Sequence[str], outputs: Sequence[str], references: Sequence[Sequence[str]], *, tokenizer: str, stemmer: bool
) -> list[Statistics]:
    """F-measures, averaged over outputs; of several references the one with the best F counts.

    `tokenizer`: `ascii` is rouge-score's own, which drops every character but a-z and 0-9; `unicode` is `words`, which
    no stemmer shortens.
    """
    scorer = _scorer(list(types), tokenizer, stemmer)
    found = [scorer.score_multi(list(refs), output) for output, refs in zip(outputs, references, strict=True)]
    version = need("importlib.metadata", "ROUGE").version("rouge-score")
    stemmed = stemmer and tokenizer == "ascii"
    signature = f"tok:{tokenizer}|stem:{'yes' if stemmed else 'no'}|f1|best-reference|version:{version}"
    return [mean_statistics(name, signature, [scores[name].fmeasure for scores in found]) for name in types]


def _scorer(types: list[str], tokenizer: str, stemmer: bool) -> Any:
    scorer = need("rouge_score.rouge_scorer", "ROUGE")
    own = _Words() if tokenizer == "unicode" else None
    return scorer.RougeScorer(types, use_stemmer=stemmer, tokenizer=own)


class _Words:
    """What rouge-score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)

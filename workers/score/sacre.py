"""BLEU and chrF: sacrebleu counts the n-grams of each output, and this file scores any sum of those counts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from .packages import PackageMissing, need
from .statistics import Statistics

_BLEU_ORDER, _CHAR_ORDER, _BETA = 4, 6, 2
# Tokenizers by language; what is not here is written with spaces, which 13a expects.
_BY_LANGUAGE = {"zh": "zh", "yue": "zh", "wuu": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}


@cache
def tokenizer_for(language: str | None) -> tuple[str, str | None]:
    """sacrebleu's tokenizer for a BCP-47 language, and a warning where the right one is not installed."""
    wanted = _BY_LANGUAGE.get((language or "").split("-")[0], "13a")
    if wanted in ("13a", "zh"):
        return wanted, None
    try:
        _bleu(wanted)
    except PackageMissing:
        extra = wanted.split("-")[0]
        return "13a", f"BLEU of {language} uses tokenizer 13a, since {wanted} needs: pip install 'sacrebleu[{extra}]'"
    return wanted, None


def check_tokenizer(tokenizer: str) -> None:
    """PackageMissing when what one of sacrebleu's tokenizers needs is not installed."""
    _bleu(tokenizer)


def bleu(outputs: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str) -> Statistics:
    """Corpus BLEU with exponential smoothing, sacrebleu's defaults but for the tokenizer."""
    rows, signature = _count(_bleu(tokenizer), outputs, references)
    return Statistics(name="bleu", signature=signature, rows=rows, score_of=_bleu_of)


def chrf(outputs: Sequence[str], references: Sequence[Sequence[str]], word_order: int = 0) -> Statistics:
    """Corpus chrF, sacrebleu's defaults; chrF++ with `word_order` 2."""
    metrics = need("sacrebleu.metrics", "chrF")
    rows, signature = _count(metrics.CHRF(word_order=word_order), outputs, references)
    name = "chrf++" if word_order else "chrf"
    order = _CHAR_ORDER + word_order
    return Statistics(name=name, signature=signature, rows=rows, score_of=partial(_chrf_of, order=order))


def _bleu(tokenizer: str) -> Any:
    metrics = need("sacrebleu.metrics", "BLEU")
    try:
        # Forced: sacrebleu would warn of outputs that end in " .", as a model may well write them.
        return metrics.BLEU(tokenize=tokenizer, force=True)
    except (ImportError, RuntimeError) as error:
        # What its tokenizers raise when their own packages are not there.
        extra = {"ja-mecab": "'sacrebleu[ja]'", "ko-mecab": "'sacrebleu[ko]'"}.get(tokenizer, "sentencepiece")
        raise PackageMissing(f"sacrebleu's tokenizer {tokenizer} needs: pip install {extra}") from error


def _count(metric: Any, outputs: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[np.ndarray, str]:
    most = max(map(len, references), default=1)
    streams = [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]
    # Not public, and stable since sacrebleu 2.0; a test compares the result with its command line.
    rows = metric._extract_corpus_statistics(list(outputs), streams)
    return np.asarray(rows, dtype=np.float64), str(metric.get_signature())


def _bleu_of(sums: np.ndarray) -> np.ndarray:
    """BLEU of [output length, reference length, 4 × correct, 4 × total]: sacrebleu's `compute_bleu`, smooth `exp`."""
    length, wanted = sums[..., 0], sums[..., 1]
    correct, total = sums[..., 2 : 2 + _BLEU_ORDER], sums[..., 2 + _BLEU_ORDER :]
    logs, smooth = np.zeros_like(length), np.ones_like(length)
    with np.errstate(divide="ignore", invalid="ignore"):
        for n in range(_BLEU_ORDER):
            found, all_of_them = correct[..., n], total[..., n]
            smooth = np.where(found == 0, 2 * smooth, smooth)
            logs += np.log(np.where(found > 0, found, 1 / smooth) * 100 / all_of_them)
        brevity = np.where(length < wanted, np.exp(1 - wanted / length), 1.0)
        scores = brevity * np.exp(logs / _BLEU_ORDER)
    # No match at all, or no n-gram of the highest order in any output.
    return np.where((correct.sum(axis=-1) > 0) & (total > 0).all(axis=-1), scores, 0.0)


def _chrf_of(sums: np.ndarray, order: int) -> np.ndarray:
    """chrF of `order` triples [in outputs, in references, in both]: sacrebleu's `_compute_f_score`."""
    counts = sums.reshape(*sums.shape[:-1], order, 3)
    made, wanted, both = counts[..., 0], counts[..., 1], counts[..., 2]
    used = (made > 0) & (wanted > 0)
    orders = np.maximum(used.sum(axis=-1), 1)
    precision = _share(both, made, used).sum(axis=-1) / orders
    recall = _share(both, wanted, used).sum(axis=-1) / orders
    factor = _BETA**2
    below = factor * precision + recall
    return 100 * np.divide((1 + factor) * precision * recall, below, out=np.zeros_like(below), where=below > 0)


def _share(part: np.ndarray, whole: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(whole), where=where)

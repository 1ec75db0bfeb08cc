"""The metrics by name: outputs and references in, statistics out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from .cider import cider
from .packages import need
from .rouge import rouge
from .rouge import tokenizer_for as rouge_tokenizer_for
from .sacre import bleu, check_tokenizer, chrf
from .sacre import tokenizer_for as bleu_tokenizer_for
from .statistics import Statistics, mean_statistics
from .text import as_answer

Metric = Literal[
    "chrf", "chrf++", "bleu", "rouge1", "rouge2", "rougeL", "rougeLsum", "cider", "exact", "exact_strict"
]  # fmt: skip
METRICS: tuple[str, ...] = get_args(Metric)

_PACKAGES = {"chrf": "sacrebleu", "bleu": "sacrebleu", "rouge": "rouge_score", "cider": "regex"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How texts are cut and compared; `auto` goes by the language (BCP-47)."""

    language: str | None = None
    tokenize: str = "auto"
    rouge_tokenizer: str = "auto"
    stemmer: bool = False
    ignore_case: bool = True


def check_packages(metrics: Sequence[str], tokenizers: Sequence[str] = ()) -> None:
    """PackageMissing for the first metric, or tokenizer of BLEU, whose package is not installed."""
    for metric in metrics:
        module = next((module for start, module in _PACKAGES.items() if metric.startswith(start)), None)
        if module is not None:
            need(module, metric)
    for tokenizer in tokenizers:
        if tokenizer != "auto":
            check_tokenizer(tokenizer)


def warnings_of(metrics: Sequence[str], options: Options) -> list[str]:
    """What a reader of the scores should know of how texts were cut."""
    found = []
    if "bleu" in metrics and options.tokenize == "auto":
        found.append(bleu_tokenizer_for(options.language)[1])
    rouges = any(metric.startswith("rouge") for metric in metrics)
    if rouges and options.stemmer and _rouge_tokenizer(options) == "unicode":
        found.append("ROUGE is not stemmed: stemmer is for English words, and for rouge_tokenizer: ascii")
    return [warning for warning in found if warning is not None]


def score(
    metrics: Sequence[str], outputs: Sequence[str | None], references: Sequence[Sequence[str]], options: Options
) -> list[Statistics]:
    """The statistics of each metric, in the order asked for; each output has at least one reference.

    An output of None is one that was never made: an empty text, except that it equals no reference, not even an empty
    one.
    """
    found: dict[str, Statistics] = {}
    texts = [output or "" for output in outputs]
    if types := [metric for metric in metrics if metric.startswith("rouge")]:
        tokenizer = _rouge_tokenizer(options)
        together = rouge(types, texts, references, tokenizer=tokenizer, stemmer=options.stemmer)
        found = {statistics.name: statistics for statistics in together}
    for metric in metrics:
        if metric in ("exact", "exact_strict"):
            ignore_case = options.ignore_case if metric == "exact" else None
            found[metric] = exact(outputs, references, ignore_case=ignore_case)
        elif metric not in found:
            found[metric] = _one(metric, texts, references, options)
    return [found[metric] for metric in metrics]


def _rouge_tokenizer(options: Options) -> str:
    return rouge_tokenizer_for(options.language) if options.rouge_tokenizer == "auto" else options.rouge_tokenizer


def _one(metric: str, outputs: Sequence[str], references: Sequence[Sequence[str]], options: Options) -> Statistics:
    match metric:
        case "chrf":
            return chrf(outputs, references)
        case "chrf++":
            return chrf(outputs, references, word_order=2)
        case "bleu":
            tokenizer = options.tokenize
            return bleu(
                outputs, references, bleu_tokenizer_for(options.language)[0] if tokenizer == "auto" else tokenizer
            )
        case "cider":
            return cider(outputs, references)
    raise ValueError(f"there is no metric {metric}")


def exact(
    outputs: Sequence[str | None], references: Sequence[Sequence[str]], *, ignore_case: bool | None
) -> Statistics:
    """The share of outputs that equal a reference; `ignore_case` None compares them character by character."""
    if ignore_case is None:
        values = [float(output in refs) for output, refs in zip(outputs, references, strict=True)]
        return mean_statistics("exact_strict", "characters", values)
    values = []
    for output, refs in zip(outputs, references, strict=True):
        made = None if output is None else as_answer(output, ignore_case)
        values.append(float(any(made == as_answer(reference, ignore_case) for reference in refs)))
    return mean_statistics("exact", f"NFC|spaces|case:{'ignored' if ignore_case else 'kept'}", values)

"""The metrics by name: outputs and references in, statistics out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from .cider import cider
from .packages import need
from .rouge import rouge
from .rouge import tokenizer_for as rouge_tokenizer_for
from .sacre import bleu, chrf
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


def check_packages(metrics: Sequence[str]) -> None:
    """PackageMissing for the first metric whose package is not installed."""
    for metric in metrics:
        module = next((module for start, module in _PACKAGES.items() if metric.startswith(start)), None)
        if module is not None:
            need(module, metric)


def warnings_of(metrics: Sequence[str], options: Options) -> list[str]:
    """What a reader of the scores should know of how texts were cut."""
    if "bleu" not in metrics or options.tokenize != "auto":
        return []
    _, warning = bleu_tokenizer_for(options.language)
    return [] if warning is None else [warning]


def score(
    metrics: Sequence[str], outputs: Sequence[str], references: Sequence[Sequence[str]], options: Options
) -> list[Statistics]:
    """The statistics of each metric, in the order asked for; each output has at least one reference."""
    found: dict[str, Statistics] = {}
    if types := [metric for metric in metrics if metric.startswith("rouge")]:
        tokenizer = options.rouge_tokenizer
        tokenizer = rouge_tokenizer_for(options.language) if tokenizer == "auto" else tokenizer
        together = rouge(types, outputs, references, tokenizer=tokenizer, stemmer=options.stemmer)
        found = {statistics.name: statistics for statistics in together}
    for metric in metrics:
        if metric not in found:
            found[metric] = _one(metric, outputs, references, options)
    return [found[metric] for metric in metrics]


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
        case "exact":
            return exact(outputs, references, ignore_case=options.ignore_case)
        case "exact_strict":
            return exact(outputs, references, ignore_case=None)
    raise ValueError(f"there is no metric {metric}")


def exact(outputs: Sequence[str], references: Sequence[Sequence[str]], *, ignore_case: bool | None) -> Statistics:
    """The share of outputs that equal a reference; `ignore_case` None compares them character by character."""
    if ignore_case is None:
        values = [float(output in refs) for output, refs in zip(outputs, references, strict=True)]
        return mean_statistics("exact_strict", "characters", values)
    values = []
    for output, refs in zip(outputs, references, strict=True):
        made = as_answer(output, ignore_case)
        values.append(float(any(made == as_answer(reference, ignore_case) for reference in refs)))
    return mean_statistics("exact", f"NFC|spaces|case:{'ignored' if ignore_case else 'kept'}", values)

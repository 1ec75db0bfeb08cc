"""CIDEr-D (Vedantam, Zitnick and Parikh, CVPR 2015, section 5) as coco-caption computes it, without its Java."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .statistics import Statistics, mean_statistics
from .text import caption_words

_ORDER, _SIGMA = 4, 6.0
_Counts = Counter[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class _Vector:
    """A caption's tf-idf weights and their norm for each n, and its length in bigrams."""

    weights: list[dict[tuple[str, ...], float]]
    norms: list[float]
    length: int


def cider(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
    """CIDEr-D × 100, as published tables give it (1.05 is 105).

    For n = 1…4, with g the vectors of term frequency × log(images / images with that n-gram in a reference):

        CIDEr-D_n = 10 · mean over references of exp(-(l_c - l_r)² / (2 · 6²)) · min(g_c, g_r) · g_r / (|g_c| |g_r|)

    and the mean over n. Frequencies come from all references given here, so a score depends on the whole set: one
    image alone has idf 0 everywhere, and scores 0.
    """
    split = [[_ngrams(reference) for reference in refs] for refs in references]
    images: _Counts = Counter()
    for refs in split:
        images.update({gram for counts in refs for gram in counts})
    rarity = math.log(max(len(split), 1))
    values = []
    for output, refs in zip(outputs, split, strict=True):
        made = _vector(_ngrams(output), images, rarity)
        each = [_similarity(made, _vector(counts, images, rarity)) for counts in refs]
        values.append(10.0 * sum(each) / len(each))
    return mean_statistics("cider", "CIDEr-D|n:4|sigma:6|df:references|tok:ptb-like|x100", values)


def _ngrams(text: str) -> _Counts:
    tokens = caption_words(text)
    return Counter(tuple(tokens[i : i + n]) for n in range(1, _ORDER + 1) for i in range(len(tokens) - n + 1))


def _vector(counts: _Counts, images: _Counts, rarity: float) -> _Vector:
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(_ORDER)]
    length = 0
    for gram, count in counts.items():
        weights[len(gram) - 1][gram] = count * (rarity - math.log(max(1, images[gram])))
        # coco-caption measures length in bigrams.
        length += count if len(gram) == 2 else 0
    norms = [math.sqrt(sum(weight * weight for weight in of_n.values())) for of_n in weights]
    return _Vector(weights, norms, length)


def _similarity(made: _Vector, wanted: _Vector) -> float:
    total = 0.0
    for ours, theirs, norm, other in zip(made.weights, wanted.weights, made.norms, wanted.norms, strict=True):
        if norm and other:
            shared = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in ours.items() if gram in theirs)
            total += shared / (norm * other)
    return math.exp(-((made.length - wanted.length) ** 2) / (2 * _SIGMA**2)) * total / _ORDER

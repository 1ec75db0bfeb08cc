"""Choose the next token of one decode: the same rules, in the same order, as transformers' generate.

Repetition penalty, then temperature, then top-k, then top-p. Each decode draws from a stream of its own, seeded
by (seed, key): what else is in the batch cannot change its result.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import ErrorCode, RequestError
from .types import Sampling


class Sampler:
    """The sampling state of one decode; `prompt_ids` are its decoder tokens so far, BOS included."""

    def __init__(self, sampling: Sampling, key: str, prompt_ids: Sequence[int]) -> None:
        self._sampling = sampling
        self._random = random.Random(stream_seed(sampling.seed, key))
        self._seen = set(prompt_ids) if sampling.repetition_penalty != 1.0 else None
        # Drawn and not used: a choice that fails half-way takes the same number when it is made again.
        self._drawn: float | None = None

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the choice is the argmax of the model's own logits."""
        return self._sampling.temperature == 0.0 and self._seen is None

    def next(self, logits_V: Tensor) -> tuple[int, float]:
        """The next token and its log-probability under the model's own distribution.

        `logits_V`: float32 [vocabulary], after the final soft cap. RequestError(non_finite) when they hold no
        finite maximum.
        """
        total = torch.logsumexp(logits_V, dim=-1)
        if not torch.isfinite(total):
            raise non_finite()
        scores_V = self._penalised(logits_V)
        if self._sampling.temperature == 0.0:
            token = int(scores_V.argmax())
        else:
            token = self._draw(scores_V)
        logprob = float(logits_V[token] - total)
        self._drawn = None
        if self._seen is not None:
            self._seen.add(token)
        return token, logprob

    def _penalised(self, logits_V: Tensor) -> Tensor:
        if self._seen is None:
            return logits_V
        seen = torch.tensor(sorted(self._seen), device=logits_V.device)
        picked = logits_V[seen]
        penalty = self._sampling.repetition_penalty
        return logits_V.index_copy(0, seen, torch.where(picked < 0, picked * penalty, picked / penalty))

    def _draw(self, scores_V: Tensor) -> int:
        sampling = self._sampling
        values, tokens = (scores_V / sampling.temperature).sort(descending=True, stable=True)
        if sampling.top_k:
            # Ties with the k-th value stay in, as in transformers.
            kth = values[min(sampling.top_k, len(values)) - 1]
            values = values[values >= kth]
        probabilities = values.softmax(dim=-1, dtype=torch.float64)
        cumulative = probabilities.cumsum(dim=-1)
        if sampling.top_p < 1.0:
            # A token stays while what stands before it has not reached top_p: the first always does.
            kept = int((cumulative - probabilities < sampling.top_p).sum())
            cumulative = cumulative[:kept]
        if self._drawn is None:
            self._drawn = self._random.random()
        point = self._drawn * float(cumulative[-1])
        index = int((cumulative <= point).sum())
        return int(tokens[min(index, len(cumulative) - 1)])


def non_finite() -> RequestError:
    """The error of a decode whose logits are not numbers."""
    return RequestError(ErrorCode.NON_FINITE, "the model's logits are not finite numbers for this input")


def stream_seed(seed: int, key: str) -> int:
    """Where the stream of the decode `key` starts: 64 bits, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")

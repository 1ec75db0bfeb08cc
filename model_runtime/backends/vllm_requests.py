"""One decode on its way through vLLM: what it is asked with, and what its outputs make of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..config import ModelConfig
from ..errors import ErrorCode, RequestError
from ..sampling import non_finite, stream_seed
from ..stopping import StopChecker
from ..types import Decode, FinishReason, Generation, Request
from ..vllm_plugin import MODALITY

# What vLLM's SamplingParams take; below the lowest it samples as if it were this.
HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE = 2.0, 0.01
_SEEDS = 2**63 - 1


class Document:
    """A request as vLLM gets it with each of its decodes."""

    def __init__(self, request: Request) -> None:
        self.ids = np.asarray(request.input_ids, dtype=np.int64)
        pixels = request.pixel_values
        if pixels is None or len(pixels) == 0:
            self.pixels = None
        else:
            # Memory of its own, or torch warns of arrays that must not be written to.
            self.pixels = pixels if isinstance(pixels, torch.Tensor) else torch.from_numpy(np.array(pixels))

    @cached_property
    def identity(self) -> str:
        """A hash of ids and pixels: equal documents share their encoding and their keys, whoever sends them."""
        digest = hashlib.blake2b(self.ids.astype("<i8").tobytes(), digest_size=16)
        if self.pixels is not None:
            digest.update(f"{self.pixels.dtype}{tuple(self.pixels.shape)}".encode())
            digest.update(self.pixels.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def prompt(self, decode: Decode, bos_id: int) -> dict[str, Any]:
        """The prompt of one decode."""
        document: dict[str, Any] = {"input_ids": self.ids}
        if self.pixels is not None:
            document["pixel_values"] = self.pixels
        return {
            "prompt_token_ids": [bos_id, *decode.prefix_ids],
            "multi_modal_data": {MODALITY: document},
            "multi_modal_uuids": {MODALITY: [self.identity]},
        }


def sampling_params(decode: Decode, model: ModelConfig) -> Any:
    """vLLM's SamplingParams of a decode.

    The rules are those of sampling.py and in its order: repetition penalty over BOS, prefix and output (a document's
    placeholders are BOS), temperature, top-k with ties, top-p; a stream of its own for each (seed, key). Which numbers
    a stream holds is vLLM's: samples differ from the native backend's, their distribution does not. Above 0, and below
    0.01, vLLM samples as at 0.01.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = decode.sampling
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_k=min(sampling.top_k, model.decoder.vocab_size),
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        seed=stream_seed(sampling.seed, decode.key) & _SEEDS,
        # vLLM refuses one beyond the vocabulary, which nothing produces.
        stop_token_ids=[token for token in model.eos_ids if token < model.decoder.vocab_size],
        ignore_eos=True,
        detokenize=False,
        # The sampled token's alone, under the model's own distribution.
        logprobs=0,
        flat_logprobs=True,
        output_kind=RequestOutputKind.DELTA if sampling.stop else RequestOutputKind.FINAL_ONLY,
    )


def check_sampling(decode: Decode) -> RequestError | None:
    """What vLLM cannot sample by, or None."""
    temperature = decode.sampling.temperature
    if temperature <= HIGHEST_TEMPERATURE:
        return None
    return RequestError(
        ErrorCode.BAD_ROW, f"temperature {temperature:g}; vLLM samples at {HIGHEST_TEMPERATURE:g} at most"
    )


@dataclass(slots=True, eq=False)
class Flight:
    """A decode that vLLM has; `stop` watches one with stop strings, token by token."""

    decode: Decode
    document: Document
    eos_ids: tuple[int, ...]
    stop: StopChecker | None
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0

    def take(self, output: Any) -> Generation | None:
        """What has ended with a RequestOutput of vLLM, or None while it goes on."""
        [completion] = output.outputs
        ended = self._watch(completion) if self.stop else self._whole(completion)
        if ended is not None or not output.finished:
            return ended
        reason = completion.finish_reason
        if reason not in ("stop", "length"):
            return self.failed(RequestError(ErrorCode.ENGINE_CRASH, f"vLLM ended it with {reason!r}"))
        return self._made(self.tokens, reason)

    def failed(self, error: RequestError) -> Generation:
        """The generation of one that has not worked."""
        return Generation(key=self.decode.key, error=error)

    def _whole(self, completion: Any) -> Generation | None:
        self.tokens += completion.token_ids
        self.logprob += completion.cumulative_logprob or 0.0
        return None if math.isfinite(self.logprob) else self.failed(non_finite())

    def _watch(self, completion: Any) -> Generation | None:
        assert self.stop is not None
        for token, chances in zip(completion.token_ids, completion.logprobs or (), strict=True):
            self.tokens.append(token)
            self.logprob += chances[token].logprob
            if not math.isfinite(self.logprob):
                return self.failed(non_finite())
            trimmed = None if token in self.eos_ids else self.stop.push(token)
            if trimmed is not None:
                return self._made(trimmed, "stop")
        return None

    def _made(self, kept: Sequence[int], reason: FinishReason) -> Generation:
        if reason == "stop" and kept is self.tokens:
            kept = kept[:-1]  # EOS
        return Generation(
            key=self.decode.key,
            token_ids=tuple(kept),
            finish_reason=reason,
            logprob=self.logprob,
            output_tokens=len(self.tokens),
        )

"""The runtime's interface: what goes into a backend and what comes out of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from .errors import RequestError

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one output is sampled. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be positive, got {self.repetition_penalty}")
        if any(not text for text in self.stop):
            raise ValueError("a stop string must not be empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """One output asked of a document: `prefix_ids` are the decoder's tokens after BOS (the instruction)."""

    key: str
    prefix_ids: tuple[int, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def positions(self) -> int:
        """Decoder positions it may use: BOS, prefix and output."""
        return 1 + len(self.prefix_ids) + self.sampling.max_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One document, encoded once for all its decodes.

    `input_ids`: the encoder's tokens, image placeholders included (one per image token).
    `pixel_values`: [images, 3, H, W], uint8 (normalised on the device) or float32 (already normalised), or None.
    """

    id: str
    input_ids: Sequence[int] | np.ndarray
    pixel_values: Any | None = None
    decodes: tuple[Decode, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One finished decode: its new tokens without EOS and stop text, or the error that ended it.

    `logprob` is the sum of the produced tokens' log-probabilities (EOS included) under the model's own
    distribution, before temperature, top-k, top-p and repetition penalty. `output_tokens` counts what was
    produced, EOS and stop text included.
    """

    key: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    logprob: float = 0.0
    output_tokens: int = 0
    error: RequestError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What to load and how to run it.

    `model` is a local folder or a hub id. `device` and `dtype` "auto" take CUDA and the weights' own dtype
    where there is one (float32 on a CPU without bfloat16 arithmetic). `max_batch_tokens`: encoder tokens packed
    into one call. `max_decodes`: decodes advanced together. `cache_bytes`: budget for keys and values; None
    takes a share of the memory that is free after loading. `shares_cores`: others work on this CPU meanwhile, so that
    threads which wait for each other had better sleep. `halvings`: how often the limits are halved at first, as after
    running out of memory; native's grow back as passes succeed, vLLM's are fixed while it runs.
    """

    model: str
    revision: str | None = None
    backend: str = "native"
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    max_batch_tokens: int = 8192
    max_decodes: int = 64
    cache_bytes: int | None = None
    shares_cores: bool = False
    halvings: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counts since loading. `occupancy` is the mean share of `max_decodes` busy over all decoding steps."""

    encodes: int = 0
    encoder_tokens: int = 0
    decoded_tokens: int = 0
    steps: int = 0
    occupancy: float = 0.0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0


class Backend(Protocol):
    """An engine that encodes each request once and decodes all its outputs, many requests together."""

    @property
    def stats(self) -> EngineStats:
        """A snapshot of the counts so far."""
        ...

    @property
    def dtype(self) -> str:
        """What it computes in: "float32" or "bfloat16"."""
        ...

    def submit(self, request: Request) -> None:
        """Queue one document; a bad input is reported by `step` as a Generation with an error, never raised."""
        ...

    def step(self) -> list[Generation]:
        """Advance everything in flight by one step; what finished, each key exactly once."""
        ...

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation]:
        """Submit all of `requests` and yield what finishes, in the order it finishes."""
        ...

    def close(self) -> None:
        """Give back the model's memory; the backend is not usable afterwards."""
        ...

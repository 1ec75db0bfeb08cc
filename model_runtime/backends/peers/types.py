"""What a peer is given and what it gives back: token ids in, token ids out, always as many as asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

BATCH_TOKENS = 8192


class PeerMissing(Exception):
    """This peer cannot take part; the text says why, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """What to load: a resolved model folder; `cache` is a folder for what a peer makes of it and keeps.

    `batch_tokens`: padded encoder tokens of one batch, for the peers that pad. `max_decodes`: rows that native
    advances together; None leaves it the engine's own number.
    """

    model: Path
    cache: Path
    dtype: str
    device: str = "cpu"
    threads: int = 1
    batch_tokens: int = BATCH_TOKENS
    max_decodes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One document and its tasks: encoder ids, and for each task the decoder's prefix after BOS."""

    ids: np.ndarray
    prefixes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """Produced ids by document and task, prefix not included.

    `later_tokens` came in `later_seconds`: what followed once the first token of its batch was there, encoding and
    prefill not in it. `extra`: what only this peer knows of itself.
    """

    tokens: list[list[tuple[int, ...]]]
    later_tokens: int
    later_seconds: float
    extra: dict[str, float]


class Peer(Protocol):
    """One runtime with the model loaded. Calls return when the work is done, on a GPU too; they time nothing but
    the later tokens. Every decode produces exactly `max_tokens`: end-of-sequence is a token like any other."""

    @classmethod
    def prepare(cls, config: PeerConfig) -> None:
        """Make what `load` needs in `config.cache`, once; runs in a process of its own. PeerMissing."""
        ...

    @classmethod
    def load(cls, config: PeerConfig) -> Peer:
        """The peer, ready; PeerMissing when it is not installed or refuses the model or the dtype."""
        ...

    def encode(self, documents: Sequence[np.ndarray]) -> None:
        """Encode all documents, and keep the states until `encoded` is asked for them."""
        ...

    def encoded(self) -> list[np.ndarray]:
        """The states of the last `encode`, float32 [tokens, hidden] for each document; they are forgotten here."""
        ...

    def run(self, asks: Sequence[Ask], max_tokens: int) -> Produced:
        """Encode every document and decode all its tasks, batched as this peer's user would."""
        ...

    def first_logits(self, ask: Ask) -> np.ndarray:
        """Logits after BOS and each prefix, float32 [prefixes, vocabulary]; PeerMissing when it does not tell them."""
        ...

    def hold(self, ids: np.ndarray) -> None:
        """The document of the next `decode` calls; encoded here where the peer can keep an encoding."""
        ...

    def decode(self, prefixes: Sequence[tuple[int, ...]], max_tokens: int) -> Produced:
        """Decode tasks over the held document, one group."""
        ...


def length_sorted_batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices from long to short in batches whose padded size is at most `tokens`, a longer document alone."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # The first of a batch is its longest: what everything in it is padded to.
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches

"""Documents and prefixes of random ids: the same for every peer, new at every repetition."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from model_runtime.backends.peers.types import Ask
from model_runtime.config import ModelConfig

# Decoder tokens before the output. One length for all: CTranslate2 and padded batches want no other.
PREFIX_TOKENS = 8
_Z99 = 2.3263


class Inputs:
    """Draws ids that a document may hold: neither special nor an image's placeholder."""

    def __init__(self, config: ModelConfig, seed: int, *case: object) -> None:
        self._config = config
        self._rng = np.random.default_rng([seed, zlib.crc32(repr(case).encode())])
        self._high = min(config.boi_id, config.eoi_id, config.image_id, config.decoder.vocab_size)
        self._low = min(1000, self._high // 4)

    def document(self, tokens: int) -> np.ndarray:
        """BOS and `tokens` - 1 others."""
        ids = self._rng.integers(self._low, self._high, tokens)
        ids[0] = self._config.bos_id
        return ids

    def prefixes(self, tasks: int) -> tuple[tuple[int, ...], ...]:
        """One for each task."""
        return tuple(tuple(row) for row in self._rng.integers(self._low, self._high, (tasks, PREFIX_TOKENS)).tolist())

    def corpus(self, lengths: Sequence[int], tasks: int) -> list[Ask]:
        """Documents of these lengths, each with the same tasks."""
        prefixes = self.prefixes(tasks)
        return [Ask(ids=self.document(length), prefixes=prefixes) for length in lengths]

    def lengths(self, documents: int, median: int, p99: int) -> list[int]:
        """Log-normal lengths in tokens, at most what the model takes."""
        drawn = self._rng.lognormal(np.log(median), np.log(p99 / median) / _Z99, documents)
        return np.clip(drawn.round(), 4, self._config.max_input_tokens).astype(int).tolist()

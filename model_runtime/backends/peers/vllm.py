"""vLLM as a peer: this project's own plugin and backend in vLLM's engine, which runs in this process."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np

from ...types import EngineStats
from .native import NativePeer
from .types import Ask, PeerConfig, PeerMissing


class VllmPeer(NativePeer):
    """See `Peer`; fed and read as native is."""

    backend_name = "vllm"

    @classmethod
    def load(cls, config: PeerConfig) -> NativePeer:
        """The engine with its own defaults; PeerMissing without vLLM, or when it refuses the dtype or the model."""
        if find_spec("vllm") is None:
            raise PeerMissing("vllm is not installed")
        return super().load(config)

    def _taken_in(self, before: EngineStats, documents: int) -> bool:
        # A document that it knows is not encoded again.
        return self._backend.all_begun

    def encode(self, documents: Sequence[np.ndarray]) -> None:
        """Not measured: the encoder inside vLLM's model is native's."""
        raise PeerMissing("its encoder is native's own")

    def first_logits(self, ask: Ask) -> np.ndarray:
        """Not told: vLLM gives the log-probabilities of a few tokens, not logits."""
        raise PeerMissing("vllm does not tell logits")

"""vLLM as a peer: this project's own plugin and backend, in vLLM's engine."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from ...types import EngineConfig, Request
from .native import NativePeer
from .types import Ask, PeerConfig, PeerMissing


class VllmPeer(NativePeer):
    """See `Peer`; the engine runs in this process, so that its memory is counted."""

    backend_name = "vllm"

    @classmethod
    def load(cls, config: PeerConfig) -> NativePeer:
        """The engine with its own defaults; PeerMissing without vLLM, or when it refuses the dtype or the model."""
        if find_spec("vllm") is None:
            raise PeerMissing("vllm is not installed (make setup-vllm)")
        return super().load(config)

    @classmethod
    def engine_config(cls, config: PeerConfig, folder: str) -> EngineConfig:
        """As native's, with room in the cache for the suite's longest document and no more of the memory."""
        return super().engine_config(config, folder)

    def encode(self, documents: Sequence[np.ndarray]) -> None:
        """One packed call to the encoder inside vLLM's model."""
        half = self._model().encoder_half
        self._states = half.encode([Request(id=str(i), input_ids=ids, decodes=()) for i, ids in enumerate(documents)])

    def first_logits(self, ask: Ask) -> np.ndarray:
        """Not told: vLLM gives log-probabilities of a few tokens, not logits."""
        raise PeerMissing("vllm does not tell logits")

    def _model(self) -> Any:
        return self._backend.model

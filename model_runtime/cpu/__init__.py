"""The CPU's fast path: bfloat16 kernels for AVX-512, compiled once per machine, and the two halves built on them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import ModelConfig
from ..decoder import Decoder, lm_logits
from ..encoder import Encoder
from . import kernels
from .decoder import CpuDecoder
from .encoder import CpuEncoder
from .int8 import Int8Head


class CpuPath:
    """Both halves and the head of one model; takes the layers' weights over from the plain modules."""

    def __init__(self, encoder: Encoder, decoder: Decoder, config: ModelConfig, int8: bool) -> None:
        self.encoder = CpuEncoder(encoder, int8)
        self.decoder = CpuDecoder(decoder, int8)
        embedding, softcap = encoder.embed_tokens.weight, config.decoder.logit_softcap
        self._head: Int8Head | _Head = Int8Head(embedding, softcap) if int8 else _Head(embedding, softcap)

    def greedy(self, hidden_RE: Tensor) -> tuple[Tensor, Tensor]:
        """See `T5Gemma2.greedy`."""
        return self._head.greedy(hidden_RE.to(torch.bfloat16).contiguous())

    def logits(self, hidden_RE: Tensor) -> Tensor:
        """See `T5Gemma2.logits`."""
        return self._head.logits(hidden_RE.to(torch.bfloat16).contiguous())


class _Head:
    """The LM head in bfloat16: the embedding, and a copy of it in the layout that is read whole at every step."""

    def __init__(self, embedding_VE: Tensor, softcap: float | None) -> None:
        self._embedding = embedding_VE
        self._packed = kernels.pack_rows(embedding_VE)
        self._softcap = softcap

    def greedy(self, hidden_RE: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.greedy_head(hidden_RE, self._packed, self._softcap)

    def logits(self, hidden_RE: Tensor) -> Tensor:
        return lm_logits(hidden_RE, self._embedding, self._softcap)

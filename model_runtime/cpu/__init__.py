"""The CPU's fast path: bfloat16 kernels for AVX-512, compiled once per machine, and the two halves built on them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import ModelConfig
from ..decoder import Decoder
from ..encoder import Encoder
from . import kernels
from .decoder import CpuDecoder
from .encoder import CpuEncoder


class CpuPath:
    """Both halves and the head of one model; takes the layers' weights over from the plain modules."""

    def __init__(self, encoder: Encoder, decoder: Decoder, config: ModelConfig, int8: bool) -> None:
        self.encoder = CpuEncoder(encoder, int8)
        self.decoder = CpuDecoder(decoder, int8)
        self._softcap = config.decoder.logit_softcap
        # A second copy beside the embedding's own: the head reads it whole at every step.
        self._head = kernels.pack_rows(encoder.embed_tokens.weight)

    def greedy(self, hidden_RE: Tensor) -> tuple[Tensor, Tensor]:
        """See `T5Gemma2.greedy`."""
        return kernels.greedy_head(hidden_RE.to(torch.bfloat16).contiguous(), self._head, self._softcap)

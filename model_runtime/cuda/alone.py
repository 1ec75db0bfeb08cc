"""The CUDA encoder without the decoder: for an engine that decodes by itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from ..config import ModelConfig
from ..encoder import Encoder
from ..layers import Block
from . import SWITCH, off, pointwise_for
from .check import TOLERANCE
from .encoder import CudaEncoder
from .pointwise import Pointwise
from .select import checked_varlen, first_that_works
from .varlen import Varlen
from .weights import FusedBlock

_log = logging.getLogger(__name__)


@torch.inference_mode()
def checked_encoder(encoder: Encoder, config: ModelConfig) -> CudaEncoder | None:
    """The fast encoder over `encoder`'s weights, once it has given what the plain one gives; None where it cannot."""
    weight = encoder.norm.weight
    device, dtype = weight.device, weight.dtype
    if off(SWITCH) or dtype != torch.bfloat16:
        return None
    attention = first_that_works(
        "attention on CUDA",
        [("varlen_attn", lambda: checked_varlen(Varlen.of_torch, config.encoder, dtype, device))],
    )
    if attention is None:
        return None
    blocks = [FusedBlock(block, config.encoder) for block in cast(Iterator[Block], iter(encoder.layers))]
    plain = Pointwise(config.encoder, compiled=False)
    for do in dict.fromkeys((pointwise_for(config.encoder, dtype, device), plain)):
        made = CudaEncoder(encoder, blocks, attention[1], do)
        reason = _differs(encoder, made, config)
        if reason is None:
            return made
        _log.warning("the CUDA encoder is left out: %s", reason)
    return None


def _differs(encoder: Encoder, made: CudaEncoder, config: ModelConfig) -> str | None:
    lengths = [length for length in (3, 700, 150) if length <= config.max_input_tokens]
    generator = torch.Generator().manual_seed(0)
    ids_T = torch.randint(0, config.encoder.vocab_size, (sum(lengths),), generator=generator)
    ids_T = ids_T.to(encoder.norm.weight.device)
    try:
        theirs = _states(encoder, encoder, ids_T, lengths)
        ours = _states(encoder, made, ids_T, lengths)
    except Exception as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    relative = float((ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt().clamp(min=1e-6))
    return None if relative <= TOLERANCE else f"its states differ from the plain modules' by {relative:.2f}"


def _states(encoder: Encoder, layers: Encoder | CudaEncoder, ids_T: Tensor, lengths: list[int]) -> Tensor:
    steps = layers.steps(encoder.embed_tokens(ids_T), lengths)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value.float()

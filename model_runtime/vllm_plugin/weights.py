"""A checkpoint's tensors into the encoder and the fused decoder stack, in whichever layout they are stored."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..checkpoint import canonical_name, check_complete, check_tensor, is_unused
from ..config import ModelConfig
from ..model import T5Gemma2
from .encode import EncoderHalf
from .stack import DecoderStack

_QKV = {"q_proj": 0, "k_proj": 1, "v_proj": 2}
_GATE_UP = {"gate_proj": 0, "up_proj": 1}


@torch.no_grad()
def load(
    weights: Iterable[tuple[str, Tensor]], model: ModelConfig, encoder: EncoderHalf, decoder: DecoderStack, where: str
) -> None:
    """Copy every tensor to its place; ModelError names one that is missing, unknown, doubled or of another shape."""
    expected = T5Gemma2.expected_tensors(model)
    seen: set[str] = set()
    for stored, tensor in weights:
        if is_unused(canonical_name(stored), model.tied):
            continue
        name = check_tensor(where, stored, tuple(tensor.shape), expected, seen)
        half, _, inner = name.partition(".")
        target = encoder.get_parameter(name) if half == "encoder" else _place(decoder, inner)
        target.copy_(tensor)
    check_complete(where, expected, seen)


def _place(decoder: DecoderStack, name: str) -> Tensor:
    """Where the decoder's tensor `name` goes: a parameter, or a part of a fused one."""
    path, _, kind = name.rpartition(".")
    owner, _, last = path.rpartition(".")
    layer, _, part = owner.rpartition(".")
    if part not in ("self_attn", "mlp"):
        return decoder.get_parameter(name)
    if last in _QKV:
        sizes = decoder.get_submodule(layer).sizes
        return decoder.get_parameter(f"{layer}.qkv_proj.{kind}").split(sizes)[_QKV[last]]  # type: ignore[arg-type]
    if last in _GATE_UP:
        return decoder.get_parameter(f"{layer}.gate_up_proj.{kind}").chunk(2)[_GATE_UP[last]]
    return decoder.get_parameter(f"{layer}.{last}.{kind}")

"""A checkpoint's layers as the CPU kernels want them: fused projections, packed once, and norms in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import ModelConfig, TextConfig
from ..layers import ACTIVATIONS, Block, RMSNorm, by_rows
from . import kernels
from .build import library
from .int8 import Int8Linear
from .linear import PackedLinear

_LARGEST_HEAD = 512


def usable(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this model runs on the kernels here: bfloat16 on a CPU that has them, and sizes that they know."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    return _fits(config.encoder) and _fits(config.decoder) and library() is not None


def _fits(config: TextConfig) -> bool:
    return (
        config.head_dim % 32 == 0
        and config.head_dim <= _LARGEST_HEAD
        and config.hidden_size % 32 == 0
        and config.intermediate_size % 32 == 0
        and config.group <= 16
        and config.vocab_size % 64 == 0
        and config.activation in ACTIVATIONS
    )


class Linear(Protocol):
    """A product with a layer's weights, whatever they are kept in."""

    def prepare(self, x: Tensor) -> Any:
        """[T, in] as the products take it; once for all that share an input."""

    def __call__(self, x: Any, activation: str | None = None) -> Tensor:
        """[T, in] → [T, out], through the activation of that config name if one is given."""

    def times(self, x: Any, other: Tensor) -> Tensor:
        """(x Wᵀ + b) × other."""


class PackedBlock:
    """One layer's weights; what a layer of either half does around its attention."""

    def __init__(self, block: Block, config: TextConfig, int8: bool) -> None:
        packed: Callable[..., Linear] = Int8Linear.moved if int8 else PackedLinear.moved
        attn, mlp = block.self_attn, block.mlp
        self.sliding, self.scale, self.eps = block.sliding, block.scale, config.norm_eps
        self._qkv = packed(attn.q_proj, attn.k_proj, attn.v_proj)
        self.head_norms = kernels.HeadNorms(plus_one(attn.q_norm), plus_one(attn.k_norm), config.norm_eps)
        self.before = plus_one(block.pre_self_attn_layernorm)
        self._out = packed(attn.o_proj)
        self._gate, self._up, self._down = (packed(p) for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        self._activation = config.activation
        self._after = plus_one(block.post_self_attn_layernorm)
        self._before_mlp = plus_one(block.pre_feedforward_layernorm)
        self._after_mlp = plus_one(block.post_feedforward_layernorm)

    def qkv(self, normed_TE: Tensor) -> Tensor:
        """Queries, keys and values side by side, [T, (H + 2K) · D]."""
        return self._qkv(self._qkv.prepare(normed_TE))

    def finish(self, x_TE: Tensor, attended_THD: Tensor, next_norm_E: Tensor) -> Tensor:
        """Add attention's result and the MLP's to `x` in place; returns norm(x) with the next layer's norm."""
        branch = self._out(self._out.prepare(attended_THD.flatten(-2)))
        normed = kernels.residual_norm(x_TE, branch, self._after, self._before_mlp, self.eps)
        return kernels.residual_norm(x_TE, by_rows(self._feed_forward, normed), self._after_mlp, next_norm_E, self.eps)

    def _feed_forward(self, normed_TE: Tensor) -> Tensor:
        shared = self._gate.prepare(normed_TE)
        inner = self._up.times(shared, self._gate(shared, self._activation))
        return self._down(self._down.prepare(inner))


def plus_one(norm: RMSNorm) -> Tensor:
    """An RMSNorm's factor: 1 + its weight, float32."""
    return (1.0 + norm.weight.float()).detach()

"""The parts both halves share: norm, rotary positions, gated MLP, embedding.

Rounding follows transformers' T5Gemma 2 (norms in float32, everything else in the weights' dtype), so bfloat16
results differ from it by no more than bfloat16 itself does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import Rope, TextConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
}


class RMSNorm(nn.Module):
    """x / rms(x) × (1 + weight), computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`, normalised over the last dimension."""
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return (x32 * (1.0 + self.weight.float())).type_as(x)


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor, rows: int = 16_384) -> Tensor:
    """`function`, which sees one row at a time, of so many rows of x [T, ...] together: bounds what it holds between.

    A feed-forward's inner states are several times as wide as a layer's input, and the longest documents have 131,072.
    """
    return function(x) if len(x) <= rows else torch.cat([function(part) for part in x.split(rows)])


class GatedMLP(nn.Module):
    """down(activation(gate(x)) × up(x))."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] → [..., hidden]."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class Projections(nn.Module):
    """The four projections and two norms of an attention layer; what is done with q, k and v is the caller's."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=bias)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps)

    def query(self, x: Tensor) -> Tensor:
        """[..., hidden] → normalised queries [..., heads, head_dim], without positions."""
        return self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, self.head_dim)))

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[..., hidden] → normalised keys without positions, and values, both [..., kv_heads, head_dim]."""
        shape = (self.kv_heads, self.head_dim)
        return self.k_norm(self.k_proj(x).unflatten(-1, shape)), self.v_proj(x).unflatten(-1, shape)


class Block(nn.Module):
    """What a layer of either half is made of: projections and a gated MLP, each with a norm before and after."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.index, self.sliding, self.scale = index, config.sliding[index], config.query_scale
        self.self_attn = Projections(config)
        self.mlp = GatedMLP(config)
        size, eps = config.hidden_size, config.norm_eps
        self.pre_self_attn_layernorm = RMSNorm(size, eps)
        self.post_self_attn_layernorm = RMSNorm(size, eps)
        self.pre_feedforward_layernorm = RMSNorm(size, eps)
        self.post_feedforward_layernorm = RMSNorm(size, eps)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output [..., hidden] from its input and its attention's result [..., heads, head_dim]."""
        x = x + self.post_self_attn_layernorm(self.self_attn.o_proj(attended.flatten(-2)))
        return x + by_rows(self._feed_forward, x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class ScaledEmbedding(nn.Module):
    """Token embedding × sqrt(hidden); the end-of-image token has a vector of its own that is not scaled."""

    def __init__(self, config: TextConfig, eoi_id: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.eoi_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.eoi_id = eoi_id
        self.scale = config.hidden_size**0.5

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [...] → [..., hidden]."""
        # The scale is rounded to the weights' dtype, as the model was trained.
        scale = float(torch.tensor(self.scale, dtype=self.weight.dtype))
        embedded = F.embedding(ids, self.weight) * scale
        return torch.where((ids == self.eoi_id).unsqueeze(-1), self.eoi_embedding.to(embedded.dtype), embedded)


def rotary_tables(rope: Rope, head_dim: int, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [..., head_dim] of integer `positions` [...]; angles in float32, then rounded to `dtype`.

    Su et al. 2021 (arXiv 2104.09864), halves rotated against each other; `linear` scaling divides positions.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    frequencies = 1.0 / (rope.theta**exponents) / rope.factor
    angles = positions.float().unsqueeze(-1) * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to x [..., heads, head_dim] with cos, sin [..., head_dim]."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin

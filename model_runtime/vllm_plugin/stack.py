"""The decoder's layers over vLLM's paged keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention

from ..config import ModelConfig, TextConfig
from ..layers import ACTIVATIONS, RMSNorm, rotary_tables, rotate
from .attention import full_backend, sliding_backend


class StackLayer(nn.Module):
    """One decoder layer; q, k and v, and gate and up, are one product each."""

    def __init__(self, config: TextConfig, index: int, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.sliding = config.sliding[index]
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        size, eps, bias = config.hidden_size, config.norm_eps, config.attention_bias
        self.sizes = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim]
        self.qkv_proj = nn.Linear(size, sum(self.sizes), bias=bias)
        self.o_proj = nn.Linear(self.sizes[0], size, bias=bias)
        self.gate_up_proj = nn.Linear(size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, size, bias=False)
        self.activation = ACTIVATIONS[config.activation]
        self.q_norm, self.k_norm = RMSNorm(self.head_dim, eps), RMSNorm(self.head_dim, eps)
        self.pre_self_attn_layernorm, self.post_self_attn_layernorm = RMSNorm(size, eps), RMSNorm(size, eps)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = RMSNorm(size, eps), RMSNorm(size, eps)
        dtype = vllm_config.model_config.dtype
        self.attn = Attention(
            self.heads,
            self.head_dim,
            config.query_scale,
            num_kv_heads=self.kv_heads,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.self_attn.attn",
            attn_backend=sliding_backend(self.head_dim, dtype, config.window)
            if self.sliding
            else full_backend(self.head_dim, dtype),
        )

    def forward(self, x_TE: Tensor, rope: tuple[Tensor, Tensor], is_document_T1: Tensor) -> Tensor:
        """[T, hidden] → [T, hidden]; a document's rows hold encoder states, write their keys, and stay as they are."""
        normed = torch.where(is_document_T1, x_TE, self.pre_self_attn_layernorm(x_TE))
        q, k, v = self.qkv_proj(normed).split(self.sizes, dim=-1)
        q = rotate(self.q_norm(q.unflatten(-1, (self.heads, self.head_dim))), *rope)
        k = rotate(self.k_norm(k.unflatten(-1, (self.kv_heads, self.head_dim))), *rope)
        k, v = _quarantined(k.flatten(1), v.contiguous())
        attended = self.attn(q.flatten(1), k, v)
        x = x_TE + self.post_self_attn_layernorm(self.o_proj(attended))
        gate, up = self.gate_up_proj(self.pre_feedforward_layernorm(x)).chunk(2, dim=-1)
        x = x + self.post_feedforward_layernorm(self.down_proj(self.activation(gate) * up))
        return torch.where(is_document_T1, x_TE, x)

    def write_document(self, states_NE: Tensor, slots_N: Tensor) -> None:
        """Keys and values of encoder states, without positions or pre-norm, into the cache's slots."""
        first = self.sizes[0]
        bias = self.qkv_proj.bias
        kv = F.linear(states_NE, self.qkv_proj.weight[first:], None if bias is None else bias[first:])
        shaped = kv.view(-1, 2, self.kv_heads, self.head_dim)
        k, v = _quarantined(self.k_norm(shaped[:, 0]), shaped[:, 1].contiguous())
        self.attn.impl.do_kv_cache_update(self.attn, k, v, self.attn.kv_cache, slots_N)  # type: ignore[attr-defined]


def _quarantined(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [T, ...] as they may enter the cache: of a row without finite numbers the keys alone say so.

    vLLM's CPU attention multiplies by 0 the values that stand behind a sequence's end, left there by whoever had the
    block before: with NaNs among them every later request of that block would be lost too. Other kernels skip them.
    """
    if not v.is_cpu:
        return k, v
    finite_T = v.flatten(1).sum(-1).isfinite()
    finite = finite_T.view(-1, *[1] * (v.ndim - 1))
    return torch.where(finite, k, torch.nan), torch.where(finite, v, 0)


@support_torch_compile(dynamic_arg_dims={"x_TE": 0, "positions_T": 0, "marks_T": 0})
class DecoderStack(nn.Module):
    """All layers and the final norm."""

    def __init__(self, *, vllm_config: VllmConfig, model: ModelConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = config = model.decoder
        self.layers = nn.ModuleList(
            StackLayer(config, i, vllm_config, f"{prefix}.layers.{i}") for i in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, x_TE: Tensor, positions_T: Tensor, marks_T: Tensor) -> Tensor:
        """Embedded tokens, or encoder states where `marks_T` is negative, [T, hidden] → hidden states [T, hidden].

        Captured in pieces, it is replayed over the memory of its first inputs: all three are views of lasting buffers.
        """
        config = self.config
        full = rotary_tables(config.rope_full, config.head_dim, positions_T, x_TE.dtype)
        sliding = rotary_tables(config.rope_sliding, config.head_dim, positions_T, x_TE.dtype)
        keep = (marks_T < 0).unsqueeze(-1)
        for layer in self.layers:
            x_TE = layer(x_TE, sliding if layer.sliding else full, keep)
        return self.norm(x_TE)

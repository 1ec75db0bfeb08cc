"""Sliding layers on the CPU: vLLM's kernel for the rows whose window reaches their first token, ours for the others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl

from ..attention import additive_mask, fold_heads, unfold_heads


class WindowedCpuBackend(CPUAttentionBackend):
    """vLLM's CPU attention; rows further from their first token than the window are computed again."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        """The implementation below."""
        return WindowedCpuImpl


@dataclass(frozen=True, slots=True)
class _Beyond:
    """Rows of one request whose window has left its first token behind; `blocks` hold every key they see."""

    rows: slice
    blocks: Tensor
    mask: Tensor  # additive, [rows, keys in those blocks]
    written: int  # of those keys; behind them stands what an earlier request has left, which may be no numbers


class WindowedCpuImpl(CPUAttentionBackendImpl):
    """See the module; `attn_metadata` carries `rswa_window` and `rswa_prefix_lens`."""

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """[rows, heads, head_dim] of queries over the cache, into `output`."""
        super().forward(layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
        if attn_metadata is None:
            return output
        beyond = getattr(attn_metadata, "t5gemma2_beyond", None)
        if beyond is None:
            beyond = attn_metadata.t5gemma2_beyond = _rows_beyond(attn_metadata, kv_cache.shape[2], query.dtype)
        if not beyond:
            return output
        pages = kv_cache.view(*kv_cache.shape[:2], -1)
        half = pages.shape[-1] // 2
        layout = _key_layout(self.head_size, kv_cache.shape[2], query.dtype, layer.isa)
        for part in beyond:
            picked = pages[part.blocks]
            keys_KND = _tokens(picked[..., :half], layout.keys)
            values_KND = _tokens(picked[..., half:], layout.values)
            keys_KND[:, part.written :] = 0
            values_KND[:, part.written :] = 0
            output[part.rows] = self._attend(query[part.rows], keys_KND, values_KND, part.mask)
        return output

    def _attend(self, q_THD: Tensor, k_KND: Tensor, v_KND: Tensor, mask_TN: Tensor) -> Tensor:
        group = self.num_heads // self.num_kv_heads
        attended = F.scaled_dot_product_attention(
            fold_heads(q_THD.contiguous(), self.num_kv_heads)[None],
            k_KND[None],
            v_KND[None],
            attn_mask=mask_TN.repeat(group, 1)[None, None],
            scale=self.scale,
        )
        return unfold_heads(attended[0], len(q_THD))


def _tokens(pages: Tensor, layout: Tensor) -> Tensor:
    """[blocks, kv_heads, block * head_dim] as stored → [kv_heads, blocks * block, head_dim]."""
    block, size = layout.shape
    ordered = pages[..., layout.flatten()]
    return ordered.view(*pages.shape[:2], block, size).transpose(0, 1).reshape(pages.shape[1], -1, size)


def _rows_beyond(metadata: Any, block: int, dtype: torch.dtype) -> list[_Beyond]:
    window = metadata.rswa_window
    starts = metadata.query_start_loc.tolist()
    ends = metadata.seq_lens.tolist()
    out = []
    for request, (prefix, end) in enumerate(zip(metadata.rswa_prefix_lens.tolist(), ends, strict=True)):
        first, last = starts[request], starts[request + 1]
        # Row i of the request stands at end - rows + i of its sequence.
        newest = end - 1
        oldest = max(newest - (last - first) + 1, prefix + window)
        if last == first or oldest > newest:
            continue
        rows = slice(last - (newest - oldest + 1), last)
        seen_from = oldest - window + 1
        document = range(-(-prefix // block))
        own = range(max(len(document), seen_from // block), newest // block + 1)
        numbers = torch.tensor([*document, *own])
        at_N = (numbers[:, None] * block + torch.arange(block)).flatten()
        q_T1 = torch.arange(oldest, newest + 1)[:, None]
        allowed = (at_N <= q_T1) & ((at_N < prefix) | (q_T1 - at_N < window))
        blocks = metadata.block_table[request, numbers].long()
        out.append(_Beyond(rows, blocks, additive_mask(allowed, dtype), int((at_N <= newest).sum())))
    return out


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where in a stored block element d of token t is: int64 [block, head_dim] each."""

    keys: Tensor
    values: Tensor


@cache
def _key_layout(head_dim: int, block: int, dtype: torch.dtype, isa: str) -> _Layout:
    """Found by storing numbered elements: the kernels shuffle each block's keys to suit their instructions."""
    size = block * head_dim
    digits = []
    for divisor in (1, 256):
        # Two digits below 256: bfloat16 holds no larger whole numbers exactly.
        numbers = (torch.arange(size) // divisor % 256).to(dtype).view(block, 1, head_dim)
        cache = torch.zeros(1, 1, 2 * block, head_dim, dtype=dtype)
        keys, values = cache.chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(
            numbers, numbers, keys, values, torch.arange(block), isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto"
        )
        digits.append(cache.view(2, size).long())
    stored = digits[0] + 256 * digits[1]
    keys_at, values_at = (torch.argsort(half) for half in stored)
    if not all(torch.equal(half.sort().values, torch.arange(size)) for half in stored):
        raise RuntimeError(f"vLLM's CPU attention ({isa}) does not keep the keys of a block whole")
    return _Layout(keys_at.view(block, head_dim), values_at.view(block, head_dim))

"""Attention without masks of document length squared.

Shapes: T packed tokens, N keys, H query heads, K key-value heads, G = H/K, D head size. The G query heads that share
a key-value head are folded into the query axis, so keys are read once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Query blocks per attention call: bounds the masks and scores in memory to a few thousand tokens' worth.
_CHUNK_TOKENS = 4096
_NO_DOCUMENT = -1


def fold_heads(q_THD: Tensor, kv_heads: int) -> Tensor:
    """[T, H, D] → [K, G·T, D]: query heads of one key-value head side by side."""
    tokens, heads, size = q_THD.shape
    return q_THD.view(tokens, kv_heads, heads // kv_heads, size).permute(1, 2, 0, 3).reshape(kv_heads, -1, size)


def unfold_heads(x_KGTD: Tensor, tokens: int) -> Tensor:
    """[K, G·T, D] → [T, H, D]: the inverse of `fold_heads`."""
    kv_heads, _, size = x_KGTD.shape
    return x_KGTD.view(kv_heads, -1, tokens, size).permute(2, 0, 1, 3).reshape(tokens, -1, size)


def full_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Every token looks at its whole document; scores are never materialised beyond a tile.

    `lengths`: the documents' token counts, in packing order, summing to T. Returns [T, H, D].
    """
    out = torch.empty_like(q_THD)
    kv_heads, start = k_TKD.shape[1], 0
    for length in lengths:
        span = slice(start, start + length)
        attended = F.scaled_dot_product_attention(
            fold_heads(q_THD[span], kv_heads).unsqueeze(0),
            k_TKD[span].transpose(0, 1).unsqueeze(0),
            v_TKD[span].transpose(0, 1).unsqueeze(0),
            scale=scale,
        )
        out[span] = unfold_heads(attended.squeeze(0), length)
        start += length
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class BandPlan:
    """How packed documents are cut into query blocks for two-sided windows; made once, used by every layer."""

    tokens: int
    left: int
    right: int
    block: int
    chunk: int  # blocks per attention call
    masks: tuple[Tensor, ...]  # one per chunk: additive [blocks or 1, 1, G·block, left + block + right]

    @property
    def blocks(self) -> int:
        """Query blocks, the last one padded."""
        return -(-self.tokens // self.block)


def plan_bands(lengths: Sequence[int], window: int, group: int, dtype: torch.dtype, device: torch.device) -> BandPlan:
    """The plan for a window of `window` keys: (window + 1)//2 − 1 left of the token, itself, window//2 right of it.

    The masks hold T × (window + block) entries at most, and chunks inside one document share a single one.
    """
    left, right = (window + 1) // 2 - 1, window // 2
    tokens = sum(lengths)
    block = min(256, max(16, window // 2))
    chunk = max(1, _CHUNK_TOKENS // block)
    blocks = -(-tokens // block)
    documents = torch.full((left + blocks * block + right,), _NO_DOCUMENT, dtype=torch.int32, device=device)
    counts = torch.tensor(list(lengths), device=device)
    documents[left : left + tokens] = torch.repeat_interleave(
        torch.arange(len(lengths), dtype=torch.int32, device=device), counts, output_size=tokens
    )
    offsets = torch.arange(left + block + right, device=device) - torch.arange(block, device=device).unsqueeze(-1)
    band = (offsets >= 0) & (offsets <= left + right)
    inner = _banded_mask(band.unsqueeze(0), group, dtype)
    masks = []
    for first in range(0, blocks, chunk):
        count = min(chunk, blocks - first)
        keys = documents[first * block :].unfold(0, left + block + right, block)[:count]
        if bool((keys == keys[0, 0]).all()) and int(keys[0, 0]) != _NO_DOCUMENT:
            masks.append(inner)
            continue
        queries = documents[left + first * block : left + (first + count) * block].view(count, block, 1)
        masks.append(_banded_mask(band & (keys.unsqueeze(1) == queries), group, dtype))
    return BandPlan(tokens=tokens, left=left, right=right, block=block, chunk=chunk, masks=tuple(masks))


def banded_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, plan: BandPlan, scale: float) -> Tensor:
    """Each token looks at its window inside its document: O(T·window) work and memory. Returns [T, H, D]."""
    heads, size, kv_heads = q_THD.shape[1], q_THD.shape[2], k_TKD.shape[1]
    group, block, padded = heads // kv_heads, plan.block, plan.blocks * plan.block
    tail = padded - plan.tokens
    q = F.pad(q_THD, (0, 0, 0, 0, 0, tail)).view(plan.blocks, block, kv_heads, group, size)
    k = F.pad(k_TKD, (0, 0, 0, 0, plan.left, tail + plan.right))
    v = F.pad(v_TKD, (0, 0, 0, 0, plan.left, tail + plan.right))
    width = plan.left + block + plan.right
    out = torch.empty_like(q)
    for i, mask in enumerate(plan.masks):
        first, last = i * plan.chunk, min((i + 1) * plan.chunk, plan.blocks)
        # unfold is a view: neighbouring windows overlap in memory.
        keys = k[first * block :].unfold(0, width, block)[: last - first].transpose(-1, -2)
        values = v[first * block :].unfold(0, width, block)[: last - first].transpose(-1, -2)
        queries = q[first:last].permute(0, 2, 3, 1, 4).reshape(last - first, kv_heads, group * block, size)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
        out[first:last] = attended.view(last - first, kv_heads, group, block, size).permute(0, 3, 1, 2, 4)
    return out.view(padded, heads, size)[: plan.tokens]


def attention_with_lse(
    q_BKQD: Tensor, k_BKND: Tensor, v_BKND: Tensor, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its scores, for merging with attention over other keys.

    `mask`: additive, broadcastable to [B, 1, Q, N]; every query must see a key. Returns [B, K, Q, D] and float32
    [B, K, Q].
    """
    if q_BKQD.device.type == "cpu":
        # The kernel behind scaled_dot_product_attention; the public function drops the log-sum-exp.
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_BKQD, k_BKND, v_BKND, dropout_p=0.0, is_causal=False, attn_mask=mask, scale=scale
        )
    scores = torch.matmul(q_BKQD.float(), k_BKND.float().transpose(-1, -2)) * scale
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1))
    return torch.matmul(weights, v_BKND.float()).to(q_BKQD.dtype), lse


def merge_attention(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor) -> Tensor:
    """One softmax over two sets of keys from the two results: outputs [..., D], log-sum-exps [...]."""
    # softmax over [A | B] weighs A's result by exp(a_lse) / (exp(a_lse) + exp(b_lse)) = sigmoid(a_lse − b_lse).
    share = torch.sigmoid(a_lse - b_lse).unsqueeze(-1)
    return torch.lerp(b.float(), a.float(), share).to(a.dtype)


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `allowed` (bool), −∞ elsewhere, same shape."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))


def _banded_mask(allowed: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    return additive_mask(allowed, dtype).repeat(1, group, 1).unsqueeze(1)

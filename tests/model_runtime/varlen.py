"""What `torch.nn.attention.varlen.varlen_attn` computes, written out, so that a CPU can run what is built on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class AuxRequest(NamedTuple):
    """torch's, by the same name."""

    lse: bool = False


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: AuxRequest | None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Any:
    """Attention inside each sequence; what the kernel leaves alone is no number here. Log-sum-exps [heads, tokens]."""
    heads, kv_heads = query.shape[1], key.shape[1]
    assert enable_gqa == (heads != kv_heads)
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert scale is not None
    out = torch.full_like(query, float("nan"))
    lse = torch.full((heads, query.shape[0]), float("nan"))
    bounds_q, bounds_k = cu_seq_q.tolist(), cu_seq_k.tolist()
    left, right = window_size
    for s in range(len(bounds_q) - 1):
        (a, b), (c, d) = bounds_q[s : s + 2], bounds_k[s : s + 2]
        assert a <= b
        assert c <= d
        if a == b:
            continue
        assert b - a <= max_q
        assert 0 < d - c <= max_k
        k = key[c:d].float().repeat_interleave(heads // kv_heads, dim=1)
        v = value[c:d].float().repeat_interleave(heads // kv_heads, dim=1)
        scores = torch.einsum("qhd,khd->hqk", query[a:b].float(), k) * scale
        ahead = torch.arange(d - c) - (torch.arange(b - a) + (d - c) - (b - a)).unsqueeze(-1)
        hidden = ((ahead > right) & (right >= 0)) | ((-ahead > left) & (left >= 0))
        scores = scores.masked_fill(hidden, float("-inf"))
        out[a:b] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(query.dtype)
        lse[:, a:b] = scores.logsumexp(-1)
    if return_aux is None or not return_aux.lse:
        return out
    if max_q == 1 and heads > kv_heads:
        # The kernel folds a group's heads into rows then, and leaves the sums in that order.
        lse = torch.full_like(lse, float("nan"))
    return out, lse

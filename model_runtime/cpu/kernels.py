"""The compiled kernels as functions over tensors: bfloat16, contiguous, on the CPU. Shapes as in attention.py."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .build import library

# Attention jobs, as attention.cpp reads them: tokens first..first+count over keys low..high of one packed key head.
JOB = np.dtype(
    [
        ("k", "u8"), ("v", "u8"), ("first", "i4"), ("count", "i4"),
        ("low", "i4"), ("high", "i4"), ("head", "i4"), ("slot", "i4"),
    ]
)  # fmt: skip
# Query rows (tokens × heads that share a key head) that the attention kernel works on together.
BLOCK_ROWS = 48
# The attention kernel reads whole tiles: packed keys and values have this many zero tokens behind them.
SPARE_TOKENS = 80
# Output columns that the products make together: weights are padded to so many.
PANEL = 64
# What follows a product on its way out.
NOTHING, GELU_TANH, TIMES = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Partial:
    """Room for partial attention results: `sums` float32 [slots, rows, D], `stats` [slots, rows, 2]."""

    sums: Tensor
    stats: Tensor

    @property
    def rows(self) -> int:
        """Query rows per slot."""
        return self.sums.shape[1]


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """x / rms(x) × weight; `weight` float32, 1 + what the checkpoint holds."""
    out = torch.empty_like(x_TE)
    rows, size = x_TE.shape
    _lib().cm_rms_norm(_p(x_TE), _p(weight_E), _p(out), rows, size, eps)
    return out


def residual_norm(x_TE: Tensor, branch_TE: Tensor, post_E: Tensor, next_E: Tensor, eps: float) -> Tensor:
    """x += norm(branch) with the post norm's weight, in place; returns norm(x) with the next norm's."""
    out = torch.empty_like(x_TE)
    rows, size = x_TE.shape
    _lib().cm_residual_norm(_p(x_TE), _p(branch_TE), _p(post_E), _p(next_E), _p(out), rows, size, eps)
    return out


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """An attention layer's query and key norms, float32 [D] each, 1 + what the checkpoint holds."""

    query: Tensor
    key: Tensor
    eps: float


def packed_heads(
    qkv: Tensor, norms: HeadNorms, angles: tuple[Tensor, Tensor], q_THD: Tensor, keys: Tensor, values: Tensor
) -> None:
    """Split a fused projection [T, (H + 2K)·D]: queries into `q_THD`, keys and values packed into [K, stride] each."""
    tokens, heads, size = q_THD.shape
    _heads(qkv, norms, angles, q_THD, keys, values, keys.stride(0), (tokens, heads, keys.shape[0], size), 1)


def plain_heads(
    qkv: Tensor, norms: HeadNorms, angles: tuple[Tensor, Tensor], heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Split a fused projection [T, (H + 2K)·D] into queries [T, H, D], keys and values [T, K, D]."""
    tokens, size = qkv.shape[0], qkv.shape[1] // (heads + 2 * kv_heads)
    q, k = qkv.new_empty(tokens, heads, size), qkv.new_empty(tokens, kv_heads, size)
    v = torch.empty_like(k)
    _heads(qkv, norms, angles, q, k, v, 0, (tokens, heads, kv_heads, size), 0)
    return q, k, v


def document_keys(kv: Tensor, weights: Tensor, keys: Tensor, values: Tensor, first: int, eps: float) -> None:
    """Normalise and pack kv [T, layers, 2, K, D] into keys and values [layers, K, stride], from token `first` on."""
    tokens, layers, _, kv_heads, size = kv.shape
    _lib().cm_document_keys(
        _p(kv), _p(weights), _p(keys), _p(values), keys.stride(1), first, tokens, layers, kv_heads, size, eps
    )


def attend(
    jobs: np.ndarray,
    q_THD: Tensor,
    kv_heads: int,
    scale: float,
    *,
    out: Tensor | None = None,
    tokens: Tensor | None = None,
    bounds: tuple[Tensor, Tensor] | None = None,
    partial: Partial | None = None,
) -> None:
    """Run attention jobs over packed keys, into `out` [T, H, D] or, for jobs with a slot, into `partial`.

    `tokens` int32: query indices that jobs' first..first+count run over, instead of the queries themselves. `bounds`
    int32 [T] each: the keys low..high that a token sees, instead of the job's own.
    """
    _, heads, size = q_THD.shape
    low, high = bounds or (None, None)
    sums, stats, rows = (partial.sums, partial.stats, partial.rows) if partial else (None, None, 0)
    _lib().cm_attend(
        jobs.ctypes.data, len(jobs), _p(q_THD), _p(out), _p(tokens), _p(low), _p(high), _p(sums), _p(stats), rows,
        heads, kv_heads, size, scale,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class OwnView:
    """Own keys and values as the merge reads them: the tensors and the strides of row, head and position."""

    keys: Tensor
    values: Tensor
    strides: tuple[int, int, int]


def own_and_merge(
    q_THD: Tensor, own: OwnView, where: Tensor, partial: Partial, spread: Tensor, kv_heads: int, scale: float
) -> Tensor:
    """One softmax over each token's own keys and its document's partial results: [T, H, D].

    `where` int32 [3, T]: cache row, first and end of the keys seen. `spread` int32 [3, T]: first slot, slots per head,
    place in the slot.
    """
    tokens, heads, size = q_THD.shape
    out = torch.empty_like(q_THD)
    _lib().cm_own_and_merge(
        _p(q_THD), _p(own.keys), _p(own.values), *own.strides, _p(where[0]), _p(where[1]), _p(where[2]),
        _p(partial.sums), _p(partial.stats), partial.rows, _p(spread[0]), _p(spread[1]), _p(spread[2]), _p(out),
        tokens, heads, kv_heads, size, scale,
    )  # fmt: skip
    return out


def pack_rows(rows_VE: Tensor) -> Tensor:
    """Weights [V, E] as `greedy_head` and `linear` read them; V a multiple of 64, E of 32."""
    packed = torch.empty_like(rows_VE)
    _lib().cm_pack_rows(_p(rows_VE), _p(packed), *rows_VE.shape)
    return packed


def greedy_head(hidden_RE: Tensor, packed_VE: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Each row's most likely token, int64 [R], and its log-probability, float32 [R]; NaN where a logit is no number.

    The logits themselves never reach memory.
    """
    rows, size = hidden_RE.shape
    tokens, chances = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.float32)
    _lib().cm_greedy_head(
        _p(hidden_RE), _p(packed_VE), rows, packed_VE.shape[0], size, softcap or 0.0, _p(tokens), _p(chances)
    )
    return tokens, chances


def greedy_head_int8(x_RE: Tensor, scales_R: Tensor, head: Int8Weight, softcap: float | None) -> tuple[Tensor, Tensor]:
    """`greedy_head` of quantised rows, over a head in 8 bits."""
    rows, size = x_RE.shape
    tokens, chances = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.float32)
    _lib().cm_greedy_head_int8(
        _p(x_RE), _p(scales_R), _p(head.tiles), _p(head.scales), _p(head.offset), rows, len(head.scales), size,
        softcap or 0.0, _p(tokens), _p(chances),
    )  # fmt: skip
    return tokens, chances


def quantize(x_TE: Tensor) -> tuple[Tensor, Tensor]:
    """bfloat16 [T, n] → uint8 round(x / scale) + 128 and float32 scales [T], NaN for a row that holds no number."""
    rows, size = x_TE.shape
    out, scales = torch.empty(rows, size, dtype=torch.uint8), torch.empty(rows)
    _lib().cm_quantize(_p(x_TE), _p(out), _p(scales), rows, size)
    return out, scales


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """int8 tiles [N / 16, K / 4, 16, 4], float32 scales [N], 128 × column sums [N], float32 bias or None.

    N is padded to whole panels.
    """

    tiles: Tensor
    scales: Tensor
    offset: Tensor
    bias: Tensor | None


def linear(
    x_TK: Tensor, packed_NK: Tensor, bias_N: Tensor | None, size: int, then: int, other: Tensor | None
) -> Tensor:
    """bfloat16 [T, size] from weights of `pack_rows`; `then`: NOTHING, GELU_TANH, or TIMES `other`."""
    rows, inner = x_TK.shape
    out = torch.empty(rows, size, dtype=torch.bfloat16)
    _lib().cm_linear(_p(x_TK), _p(packed_NK), _p(bias_N), _p(other), _p(out), rows, size, inner, then)
    return out


def linear_int8(
    x_TK: Tensor, scales_T: Tensor, weight: Int8Weight, size: int, then: int, other: Tensor | None
) -> Tensor:
    """bfloat16 [T, size]; `then` as in `linear`."""
    rows, inner = x_TK.shape
    out = torch.empty(rows, size, dtype=torch.bfloat16)
    _lib().cm_linear_int8(
        _p(x_TK), _p(scales_T), _p(weight.tiles), _p(weight.scales), _p(weight.offset), _p(weight.bias), _p(other),
        _p(out), rows, size, inner, then,
    )  # fmt: skip
    return out


def _heads(
    qkv: Tensor, norms: HeadNorms, angles: tuple[Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor, stride: int,
    sizes: tuple[int, int, int, int], packed: int,
) -> None:  # fmt: skip
    cos, sin = angles
    _lib().cm_heads(
        _p(qkv),
        _p(norms.query),
        _p(norms.key),
        _p(cos),
        _p(sin),
        _p(q),
        _p(k),
        _p(v),
        stride,
        *sizes,
        norms.eps,
        packed,
    )


def _p(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_SIGNATURES = {
    "cm_rms_norm": [_POINTER] * 3 + [_LONG, _INT, _FLOAT],
    "cm_residual_norm": [_POINTER] * 5 + [_LONG, _INT, _FLOAT],
    "cm_heads": [_POINTER] * 8 + [_LONG, _LONG, _INT, _INT, _INT, _FLOAT, _INT],
    "cm_document_keys": [_POINTER] * 4 + [_LONG, _LONG, _LONG, _INT, _INT, _INT, _FLOAT],
    "cm_attend": [_POINTER, _LONG] + [_POINTER] * 7 + [_LONG, _INT, _INT, _INT, _FLOAT],
    "cm_own_and_merge": [_POINTER] * 3 + [_LONG] * 3 + [_POINTER] * 5 + [_LONG] + [_POINTER] * 4
    + [_LONG, _INT, _INT, _INT, _FLOAT],
    "cm_quantize": [_POINTER] * 3 + [_LONG, _INT],
    "cm_linear": [_POINTER] * 5 + [_LONG, _LONG, _INT, _INT],
    "cm_linear_int8": [_POINTER] * 8 + [_LONG, _LONG, _INT, _INT],
    "cm_pack_rows": [_POINTER] * 2 + [_LONG, _INT],
    "cm_greedy_head_int8": [_POINTER] * 5 + [_LONG, _LONG, _INT, _FLOAT, _POINTER, _POINTER],
    "cm_greedy_head": [_POINTER] * 2 + [_LONG, _LONG, _INT, _FLOAT, _POINTER, _POINTER],
}  # fmt: skip


@lru_cache(maxsize=1)
def _lib() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None and loaded.cm_job_size() == JOB.itemsize
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    return loaded

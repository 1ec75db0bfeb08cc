"""Every fast kernel earns its place: it is run once on this device, against the formula written out in float32."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..config import TextConfig
from .pointwise import Pointwise
from .varlen import EVERYTHING, LseLayout, Packed, Unsupported, Varlen, boundaries, encoder_window

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

# Largest difference over the largest value expected. bfloat16 keeps 8 bits; a wrong mask or a wrong head is of order 1.
TOLERANCE = {torch.bfloat16: 0.03, torch.float32: 1e-4}
_LENGTHS = (5, 300, 1, 130)


class Differs(Exception):
    """A kernel's result is not what it should be."""


def first_that_works(what: str, candidates: Iterable[tuple[str, Callable[[], _T]]]) -> tuple[str, _T] | None:
    """The first candidate, by name, that can be made and checked; one log line for each that cannot."""
    for name, make in candidates:
        try:
            return name, make()
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            _log.warning("%s without %s: %s", what, name, reason)
    return None


def checked_varlen(
    make: Callable[[LseLayout], Varlen], config: TextConfig, dtype: torch.dtype, device: torch.device
) -> Varlen:
    """The attention kernel, after it has done on small inputs all that the encoder and the decoder ask of it."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(_LENGTHS)
    heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim
    q, k, v = (torch.randn(tokens, n, size, generator=generator).to(device, dtype) for n in (heads, kv_heads, kv_heads))
    scale = size**-0.5
    cu = torch.from_numpy(boundaries(_LENGTHS)).to(device)
    packed = Packed(cu, cu, max(_LENGTHS), max(_LENGTHS))
    varlen = make("heads first")
    for window in (encoder_window(33), encoder_window(config.window), EVERYTHING):
        expected, _ = written_out(q, k, v, _allowed(cu, cu, window), scale)
        agree(f"window {window}", varlen(q, k, v, packed, scale, window), expected)
    for window in ((32, 0), (config.window - 1, 0), (-1, 0)):
        varlen = _with_layout(make, varlen, (q, k, v), packed, scale, window)
    # As the decoder asks: gaps that nobody reads, few queries, heads folded into rows, padding at the end.
    rows = q[:40, :kv_heads].contiguous()
    cu_q = torch.tensor([0, 0, 8, 8, 40, 40, 40], dtype=torch.int32, device=device)
    cu_k = torch.tensor([0, 7, 135, 200, 206, 206, 206], dtype=torch.int32, device=device)
    gaps = Packed(cu_q, cu_k, 64, 128)
    end = int(cu_k[-1])
    expected, expected_lse = written_out(rows, k[:end], v[:end], _allowed(cu_q, cu_k, EVERYTHING), scale)
    out, lse = varlen.with_lse(rows, k, v, gaps, scale)
    agree("packed keys with gaps", out, expected)
    agree("its log-sum-exps", lse, expected_lse)
    return varlen


def _with_layout(
    make: Callable[[LseLayout], Varlen],
    varlen: Varlen,
    qkv: tuple[Tensor, Tensor, Tensor],
    packed: Packed,
    scale: float,
    window: tuple[int, int],
) -> Varlen:
    """`varlen`, or another that reads its log-sum-exps the other way round, if that is what this torch returns."""
    expected, expected_lse = written_out(*qkv, _allowed(packed.cu_q, packed.cu_k, window), scale)
    out, lse = varlen.with_lse(*qkv, packed, scale, window)
    agree(f"window {window}", out, expected)
    if lse.shape == expected_lse.T.shape != expected_lse.shape:
        varlen = make("tokens first" if varlen.lse_layout == "heads first" else "heads first")
        lse = lse.T
    agree("its log-sum-exps", lse, expected_lse)
    return varlen


def check_pointwise(do: Pointwise, config: TextConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Compiled functions against their plain forms, with two row counts and one row; Differs names the function."""
    plain = Pointwise(config, compiled=False)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, kind)

    hidden, size, group, kv = config.hidden_size, config.head_dim, config.group, config.num_kv_heads
    for rows in (7, 24, 1):
        x, branch = draw(rows, hidden), draw(rows, hidden)
        factors = draw(hidden, kind=torch.float32), draw(hidden, kind=torch.float32)
        small = draw(size, kind=torch.float32), draw(size, kind=torch.float32)
        angles = draw(rows, size // 2, kind=torch.float32), draw(rows, size // 2, kind=torch.float32)
        partials = torch.arange(2 * rows, dtype=torch.int32, device=device)
        merging = (
            draw(rows, group, kv, size),
            draw(rows, group, kv, kind=torch.float32),
            draw(2 * rows, group, kv, size),
            draw(kv, 2 * rows * group, kind=torch.float32).T.unflatten(0, (2 * rows, group)),
            # The first token has one partial, the others two.
            (torch.arange(rows + 1, dtype=torch.int32, device=device) * 2 - 1).clamp(min=0),
            partials.flip(0),
            torch.arange(2, dtype=torch.int32, device=device),
        )
        calls: dict[str, tuple] = {
            "norm": (x, factors[0]),
            "residual_norm": (x, branch, *factors),
            "heads": (draw(rows, (config.num_heads + 2 * kv) * size), *small, *angles),
            "document_heads": (draw(rows, 2 * kv * size), small[0]),
            "gated": (draw(rows, 2 * config.intermediate_size),),
            "merge": merging,
            "best": (draw(rows, 1000), config.logit_softcap),
        }
        for name, arguments in calls.items():
            made, expected = getattr(do, name)(*arguments), getattr(plain, name)(*arguments)
            for one, other in zip(_tuple(made), _tuple(expected), strict=True):
                if one.is_floating_point():
                    agree(name, one, other)


def agree(what: str, actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Differs when shapes are not the same, or numbers further apart than the actual dtype allows."""
    if actual.shape != expected.shape:
        raise Differs(f"{what} has shape {list(actual.shape)}, not {list(expected.shape)}")
    limit = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    # Log-sum-exps are float32, of scores that are not.
    limit = max(limit, 0.01) if what.endswith("log-sum-exps") else limit
    error = float((actual.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-6))
    if not error <= limit:
        raise Differs(f"{what} is {error:.1e} away from float32, over {limit:.1e}")


def written_out(q_THD: Tensor, k_NKD: Tensor, v_NKD: Tensor, allowed_TN: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(q·k·scale) v over the allowed keys in float32 [T, H, D], and the log-sum-exps [T, H]."""
    group = q_THD.shape[1] // k_NKD.shape[1]
    k, v = (x.float().repeat_interleave(group, dim=1) for x in (k_NKD, v_NKD))
    scores = torch.einsum("thd,nhd->htn", q_THD.float(), k) * scale
    scores = scores.masked_fill(~allowed_TN, float("-inf"))
    return torch.einsum("htn,nhd->thd", scores.softmax(-1), v), scores.logsumexp(-1).T


def _allowed(cu_q: Tensor, cu_k: Tensor, window: tuple[int, int]) -> Tensor:
    """Which queries see which keys, bool [T, N up to the last sequence's end]; see `Packed`."""
    counts_q, counts_k = cu_q.diff().long(), cu_k.diff().long()
    sequences = torch.arange(len(counts_q), device=cu_q.device)
    of_q, of_k = torch.repeat_interleave(sequences, counts_q), torch.repeat_interleave(sequences, counts_k)
    at_q = torch.arange(len(of_q), device=cu_q.device) - cu_q[of_q]
    at_k = torch.arange(len(of_k), device=cu_q.device) - cu_k[of_k]
    # With unequal lengths the last query and the last key stand at the same place.
    ahead = at_k - (at_q + (counts_k - counts_q)[of_q]).unsqueeze(-1)
    left, right = window
    allowed = of_q.unsqueeze(-1) == of_k
    return allowed & ((-ahead <= left) | (left < 0)) & ((ahead <= right) | (right < 0))


def _tuple(value: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (value,) if isinstance(value, Tensor) else value


__all__ = ["Differs", "Unsupported", "agree", "check_pointwise", "checked_varlen", "first_that_works", "written_out"]

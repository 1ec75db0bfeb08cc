"""Dynamic int8 linear layers: weights quantised per output channel once, activations per row as they come."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..decoder import capped
from . import kernels
from .linear import activated, take

# Rows that are float32 at the same time while they are quantised.
_ROWS_AT_ONCE = 8192


class Quantized(NamedTuple):
    """Activations [T, K] as uint8 around 128, and each row's scale, float32 [T]."""

    values: Tensor
    scales: Tensor


class Int8Linear:
    """y = x Wᵀ + b with both factors in 8 bits and sums in 32; scales are symmetric: largest magnitude / 127."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._size = weight.shape[0]
        padded = -(-self._size // kernels.PANEL) * kernels.PANEL
        scales = torch.ones(padded)
        whole = torch.zeros(padded, weight.shape[1], dtype=torch.int8)
        for first in range(0, self._size, _ROWS_AT_ONCE):
            rows = slice(first, min(self._size, first + _ROWS_AT_ONCE))
            exact = weight[rows].float()
            scales[rows] = exact.abs().amax(dim=1).clamp_min(1e-12) / 127
            whole[rows] = (exact / scales[rows].unsqueeze(1)).round().to(torch.int8)
        tiles = whole.view(-1, 16, weight.shape[1] // 4, 4)
        self.weight = kernels.Int8Weight(
            tiles=tiles.transpose(1, 2).contiguous(),
            scales=scales,
            offset=whole.sum(dim=1, dtype=torch.int32) * 128,
            bias=bias.float() if bias is not None else None,
        )

    @classmethod
    def moved(cls, *linears: nn.Linear) -> Int8Linear:
        """One product for several that read the same input, after which they hold no weights any more."""
        return cls(*take(linears))

    def prepare(self, x: Tensor) -> Quantized:
        """[T, K] as the products take it; once for all that share an input."""
        return Quantized(*kernels.quantize(x))

    def __call__(self, x: Quantized, activation: str | None = None) -> Tensor:
        """[T, in] → bfloat16 [T, out], through the activation of that config name if one is given."""
        return activated(activation, lambda then: self._run(x, then, None))

    def times(self, x: Quantized, other: Tensor) -> Tensor:
        """(x Wᵀ + b) × other."""
        return self._run(x, kernels.TIMES, other)

    def _run(self, x: Quantized, then: int, other: Tensor | None) -> Tensor:
        return kernels.linear_int8(x.values, x.scales, self.weight, self._size, then, other)


class Int8Head:
    """The LM head in 8 bits."""

    def __init__(self, embedding_VE: Tensor, softcap: float | None) -> None:
        self._linear = Int8Linear(embedding_VE, None)
        self._softcap = softcap

    def greedy(self, hidden_RE: Tensor) -> tuple[Tensor, Tensor]:
        """See `T5Gemma2.greedy`."""
        rows = self._linear.prepare(hidden_RE)
        return kernels.greedy_head_int8(rows.values, rows.scales, self._linear.weight, self._softcap)

    def logits(self, hidden_RE: Tensor) -> Tensor:
        """See `T5Gemma2.logits`."""
        return capped(self._linear(self._linear.prepare(hidden_RE)), self._softcap)

"""Dynamic int8 linear layers: weights quantised per output channel once, activations per row as they come."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..layers import ACTIVATIONS
from . import kernels

_FUSED = "gelu_pytorch_tanh"


class Quantized(NamedTuple):
    """Activations [T, K] as uint8 around 128, and each row's scale, float32 [T]."""

    values: Tensor
    scales: Tensor


class Int8Linear:
    """y = x Wᵀ + b with both factors in 8 bits and sums in 32; scales are symmetric: largest magnitude / 127."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._size = weight.shape[0]
        scales = weight.float().abs().amax(dim=1).clamp_min(1e-12) / 127
        whole = torch.zeros(-(-self._size // 64) * 64, weight.shape[1], dtype=torch.int8)
        whole[: self._size] = (weight.float() / scales.unsqueeze(1)).round().to(torch.int8)
        self._offset = whole.sum(dim=1, dtype=torch.int32) * 128
        tiles = whole.view(-1, 16, weight.shape[1] // 4, 4)
        self._weight = tiles.transpose(1, 2).contiguous()
        self._scales = scales
        self._bias = bias.float() if bias is not None else None

    @classmethod
    def moved(cls, *linears: nn.Linear) -> Int8Linear:
        """One product for several that read the same input, after which they hold no weights any more."""
        from .weights import take

        return cls(*take(linears))

    def prepare(self, x: Tensor) -> Quantized:
        """[T, K] as the products take it; once for all that share an input."""
        return Quantized(*kernels.quantize(x))

    def __call__(self, x: Quantized, activation: str | None = None) -> Tensor:
        """[T, in] → bfloat16 [T, out], through the activation of that config name if one is given."""
        if activation is None or activation == _FUSED:
            return self._run(x, 1 if activation else 0, None)
        return ACTIVATIONS[activation](self._run(x, 0, None))

    def times(self, x: Quantized, other: Tensor) -> Tensor:
        """(x Wᵀ + b) × other."""
        return self._run(x, 2, other)

    def _run(self, x: Quantized, then: int, other: Tensor | None) -> Tensor:
        weight = kernels.Int8Weight(self._weight, self._scales, self._offset, self._bias)
        return kernels.linear_int8(x.values, x.scales, weight, self._size, then, other)

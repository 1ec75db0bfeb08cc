"""Weights in 8 bits: one scale for each output channel, symmetric; activations and arithmetic stay 16-bit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LARGEST = 127


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] → int8 [out, in] and float32 scales [out], so that int8 × scale is nearest to the weight."""
    weight = weight.float()
    scale = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST
    # A row of zeros, or of numbers so small that their scale is none, is zeros.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight / scale.unsqueeze(1)).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scale


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b for a quantised W: [..., in] → [..., out], in the dtype of `x`.

    The 8-bit numbers are exact in bfloat16, so the product loses nothing by them; they are widened for each call.
    """
    out = F.linear(x, weight.to(x.dtype)).float() * scale
    return (out if bias is None else out + bias.float()).to(x.dtype)

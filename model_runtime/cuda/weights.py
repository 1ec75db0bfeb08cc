"""A checkpoint's layers as the CUDA path reads them: products that share an input are one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import TextConfig
from ..layers import Block, RMSNorm, by_rows
from .int8 import int8_linear, quantize_weight
from .pointwise import Pointwise


class Joined:
    """Several linears over one input as a single product; their outputs stand side by side.

    The linears stay usable: their weights become views of the joined one, so that nothing is held twice.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        # A weight of its own already is one piece: no copy.
        weights = [linear.weight.detach() for linear in linears]
        self.weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        self._linears = linears
        self._scale: Tensor | None = None
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        parts = self.weight.split([linear.out_features for linear in linears])
        for linear, part in zip(linears, parts, strict=True):
            linear.weight = nn.Parameter(part, requires_grad=False)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] → [T, sum of outs]."""
        return self.rows(0, x)

    def rows(self, first: int, x: Tensor) -> Tensor:
        """The outputs from `first` on only."""
        weight, bias = self.weight[first:], None if self.bias is None else self.bias[first:]
        return F.linear(x, weight, bias) if self._scale is None else int8_linear(x, weight, self._scale[first:], bias)

    def quantize(self) -> None:
        """Keep the weights in 8 bits from now on; the linears hold none any more."""
        self.weight, self._scale = quantize_weight(self.weight)
        for linear in self._linears:
            linear.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)


class FusedBlock:
    """One layer's weights; what a layer of either half does around its attention."""

    def __init__(self, block: Block, config: TextConfig) -> None:
        attn, mlp = block.self_attn, block.mlp
        self.sliding, self.scale = block.sliding, block.scale
        self.qkv = Joined([attn.q_proj, attn.k_proj, attn.v_proj])
        self.first_key = config.num_heads * config.head_dim
        self.q_norm, self.k_norm = factor(attn.q_norm), factor(attn.k_norm)
        self.before = factor(block.pre_self_attn_layernorm)
        self._gate_up = Joined([mlp.gate_proj, mlp.up_proj])
        self._out, self._down = Joined([attn.o_proj]), Joined([mlp.down_proj])
        self._after = factor(block.post_self_attn_layernorm)
        self._before_mlp = factor(block.pre_feedforward_layernorm)
        self._after_mlp = factor(block.post_feedforward_layernorm)

    def quantize(self) -> None:
        """Keep the weights of the products in 8 bits from now on."""
        for product in (self.qkv, self._gate_up, self._out, self._down):
            product.quantize()

    def finish(self, x_TE: Tensor, attended: Tensor, next_norm_E: Tensor, do: Pointwise) -> tuple[Tensor, Tensor]:
        """The layer's output from its input and its attention's result [T, H · D], and that through the next norm."""
        x_TE, normed = do.residual_norm(x_TE, self._out(attended), self._after, self._before_mlp)
        branch = by_rows(lambda part: self._down(do.gated(self._gate_up(part))), normed)
        return do.residual_norm(x_TE, branch, self._after_mlp, next_norm_E)


def factor(norm: RMSNorm) -> Tensor:
    """What an RMSNorm multiplies with: 1 + its weight, float32."""
    return (1.0 + norm.weight.float()).detach()

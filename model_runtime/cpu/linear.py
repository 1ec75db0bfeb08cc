"""bfloat16 linear layers, and what they share with those in 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..layers import ACTIVATIONS
from . import kernels

# The activation that the kernels compute on a product's way out.
_FUSED = "gelu_pytorch_tanh"


class PackedLinear:
    """y = x Wᵀ + b with W in the kernels' layout, and what follows it fused in."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._size = weight.shape[0]
        whole = weight.new_zeros(-(-self._size // kernels.PANEL) * kernels.PANEL, weight.shape[1])
        whole[: self._size] = weight
        self._weight = kernels.pack_rows(whole)
        self._bias = bias.float() if bias is not None else None

    @classmethod
    def moved(cls, *linears: nn.Linear) -> PackedLinear:
        """One product for several that read the same input, after which they hold no weights any more."""
        return cls(*take(linears))

    def prepare(self, x: Tensor) -> Tensor:
        """[T, in] as the products take it: as it is, one row after the other."""
        return x.contiguous()

    def __call__(self, x: Tensor, activation: str | None = None) -> Tensor:
        """[T, in] → [T, out], through the activation of that config name if one is given."""
        return activated(activation, lambda then: self._run(x, then, None))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x Wᵀ + b) × other."""
        return self._run(x, kernels.TIMES, other)

    def _run(self, x: Tensor, then: int, other: Tensor | None) -> Tensor:
        return kernels.linear(x, self._weight, self._bias, self._size, then, other)


def activated(activation: str | None, run: Callable[[int], Tensor]) -> Tensor:
    """What `run(then)` makes, through the activation of that config name: by the kernel where it knows it."""
    if activation is None:
        return run(kernels.NOTHING)
    if activation == _FUSED:
        return run(kernels.GELU_TANH)
    return ACTIVATIONS[activation](run(kernels.NOTHING))


def joined(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weights and biases of several linears one below the other."""
    weights: list[Tensor] = [linear.weight for linear in linears]
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    return torch.cat(weights).detach(), torch.cat(biases).detach() if biases else None


def take(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """`joined`, and the linears give their weights up: the packed copy is the only one read from now on."""
    weight, bias = joined(linears)
    for linear in linears:
        linear.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)
    return weight, bias

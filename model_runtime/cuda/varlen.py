"""torch's attention over packed sequences (FlashAttention), and how it is called in the versions that are allowed.

Shapes: T packed query tokens, N packed keys, H query heads, K key-value heads, D head size, S sequences.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

EVERYTHING = (-1, -1)
# What a version must let its caller say; all from 2.11 on do.
_NEEDED = ("scale", "window_size", "return_aux")
LseLayout = Literal["heads first", "tokens first"]


class Unsupported(Exception):
    """A kernel cannot be used here; the message says why."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Sequences in packed tensors: sequence s has queries cu_q[s]:cu_q[s + 1] and keys cu_k[s]:cu_k[s + 1].

    Both int32 [S + 1] on the device. A stretch of keys that nobody may see is a sequence without queries. `max_q` and
    `max_k`: at least the queries and the keys of the longest sequence that has queries.
    """

    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int


def call_options(names: Collection[str], window: tuple[int, int], scale: float, grouped: bool) -> dict[str, Any]:
    """The keyword arguments of one call, for a `varlen_attn` whose parameters are `names`; Unsupported says what lacks.

    `window`: keys to the left and to the right of a query that it sees, −1 without bound. `grouped`: H > K.
    """
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise Unsupported(f"this torch's varlen_attn takes no {missing[0]}")
    options: dict[str, Any] = {"scale": scale, "window_size": window}
    # Older versions pass grouped heads through without being told.
    if grouped and "enable_gqa" in names:
        options["enable_gqa"] = True
    return options


def encoder_window(window: int) -> tuple[int, int]:
    """Keys left and right of a token that an encoder's sliding layer with `window` keys sees."""
    return (window + 1) // 2 - 1, window // 2


def boundaries(lengths: Sequence[int]) -> np.ndarray:
    """0 and the running sum of `lengths`, int32."""
    return np.cumsum([0, *lengths], dtype=np.int32)


class Varlen:
    """`varlen_attn` behind one signature; `lse_layout` says how this version returns the log-sum-exps."""

    def __init__(
        self, function: Callable[..., Any], aux: Callable[..., Any], lse_layout: LseLayout = "heads first"
    ) -> None:
        parameters: Mapping[str, Any] = inspect.signature(function).parameters
        self._names = frozenset(parameters)
        call_options(self._names, EVERYTHING, 1.0, False)
        self._function, self._aux = function, aux
        self.lse_layout = lse_layout

    @classmethod
    def of_torch(cls, lse_layout: LseLayout = "heads first") -> Varlen:
        """The installed torch's; Unsupported when it has none that serves."""
        try:
            from torch.nn.attention.varlen import AuxRequest, varlen_attn
        except ImportError as error:
            raise Unsupported(f"this torch has no varlen_attn ({error})") from error
        return cls(varlen_attn, AuxRequest, lse_layout)

    def __call__(
        self,
        q_THD: Tensor,
        k_NKD: Tensor,
        v_NKD: Tensor,
        packed: Packed,
        scale: float,
        window: tuple[int, int] = EVERYTHING,
    ) -> Tensor:
        """Attention inside each sequence: [T, H, D]."""
        options = call_options(self._names, window, scale, q_THD.shape[1] != k_NKD.shape[1])
        return self._function(q_THD, k_NKD, v_NKD, packed.cu_q, packed.cu_k, packed.max_q, packed.max_k, **options)

    def with_lse(
        self,
        q_THD: Tensor,
        k_NKD: Tensor,
        v_NKD: Tensor,
        packed: Packed,
        scale: float,
        window: tuple[int, int] = EVERYTHING,
    ) -> tuple[Tensor, Tensor]:
        """Attention inside each sequence [T, H, D] and the log-sum-exps of the scores, float32 [T, H].

        With one query per sequence at most H = K only: the kernel then reorders grouped heads and their sums.
        """
        assert packed.max_q > 1 or q_THD.shape[1] == k_NKD.shape[1]
        options = call_options(self._names, window, scale, q_THD.shape[1] != k_NKD.shape[1])
        out, lse = self._function(
            q_THD,
            k_NKD,
            v_NKD,
            packed.cu_q,
            packed.cu_k,
            packed.max_q,
            packed.max_k,
            return_aux=self._aux(lse=True),
            **options,
        )
        return out, lse.transpose(0, 1) if self.lse_layout == "heads first" else lse

"""What a layer does between its matrix products, each as one function that torch.compile makes one or two kernels of.

Shapes: T tokens, E hidden, H query heads in G groups for each of K key-value heads, D head size. Norm factors are
1 + weight, float32; arithmetic is float32, results are in the inputs' dtype.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..config import TextConfig
from ..layers import ACTIVATIONS

_log = logging.getLogger(__name__)


def rms_norm(x: Tensor, factor: Tensor, eps: float) -> Tensor:
    """x / rms(x) × factor over the last dimension."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * factor).to(x.dtype)


class Pointwise:
    """The functions for one half's sizes; `compiled` says whether torch.compile made them.

    A function that cannot be compiled or run compiled is replaced by its plain form, with one line in the log.
    """

    def __init__(self, config: TextConfig, compiled: bool) -> None:
        self._heads, self._kv_heads, self._size = config.num_heads, config.num_kv_heads, config.head_dim
        self._eps, self._activation = config.norm_eps, ACTIVATIONS[config.activation]
        self.compiled = compiled
        # The numbers: arguments whose first size varies from call to call.
        self.norm = self._made(self._norm, (0,))
        self.residual_norm = self._made(self._residual_norm, (0, 1))
        self.heads = self._made(self._split_heads, (0, 3, 4))
        self.document_heads = self._made(self._split_document_heads, (0,))
        self.gated = self._made(self._gated, (0,))
        self.merge = self._made(merge_partials, (0, 1, 2, 3, 4, 5, 6))
        self.best = self._made(best_tokens, (0,))

    def _norm(self, x_TE: Tensor, factor_E: Tensor) -> Tensor:
        """[T, E] → [T, E]."""
        return rms_norm(x_TE, factor_E, self._eps)

    def _residual_norm(
        self, x_TE: Tensor, branch_TE: Tensor, after_E: Tensor, before_E: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x + norm(branch), and that normed again for what follows."""
        x_TE = x_TE + rms_norm(branch_TE, after_E, self._eps)
        return x_TE, rms_norm(x_TE, before_E, self._eps)

    def _split_heads(
        self, qkv: Tensor, q_factor_D: Tensor, k_factor_D: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[T, (H + 2K) · D] with cos, sin float32 [T, D / 2] → queries [T, H, D], keys and values [T, K, D]."""
        shaped = qkv.unflatten(-1, (-1, self._size))
        q, k, v = shaped.split((self._heads, self._kv_heads, self._kv_heads), dim=1)
        q, k = rms_norm(q, q_factor_D, self._eps), rms_norm(k, k_factor_D, self._eps)
        return _rotated(q, cos, sin), _rotated(k, cos, sin), v.contiguous()

    def _split_document_heads(self, kv: Tensor, k_factor_D: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 2K · D] → a document's keys, normed and without positions, and values, [N, K, D] each."""
        k, v = kv.unflatten(-1, (2, self._kv_heads, self._size)).unbind(1)
        return rms_norm(k, k_factor_D, self._eps), v.contiguous()

    def _gated(self, gate_up: Tensor) -> Tensor:
        """[T, 2F] → activation(gate) × up, [T, F]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return self._activation(gate) * up

    def _made(self, function: Callable[..., Any], varying: tuple[int, ...]) -> Callable[..., Any]:
        return _Compiled(self, function, varying) if self.compiled else function


class _Compiled:
    def __init__(self, owner: Pointwise, plain: Callable[..., Any], varying: tuple[int, ...]) -> None:
        self._owner, self._plain, self._varying = owner, plain, varying
        self._call: Callable[..., Any] = torch.compile(plain)

    def __call__(self, *arguments: Any) -> Any:
        try:
            for place in self._varying:
                # At once, and not after a first version for one size only.
                torch._dynamo.maybe_mark_dynamic(arguments[place], 0)
            return self._call(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if self._call is self._plain:
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            _log.warning("%s runs uncompiled: %s", self._plain.__name__, reason)
            self._call, self._owner.compiled = self._plain, False
            return self._plain(*arguments)


def merge_partials(
    own_TGKD: Tensor,
    own_lse_TGK: Tensor,
    parts_PGKD: Tensor,
    parts_lse_PGK: Tensor,
    offsets_T1: Tensor,
    index_P: Tensor,
    reach_W: Tensor,
) -> Tensor:
    """One softmax over a token's own keys and all its document's, from the results over the parts: [T, K · G · D].

    Token t's partials are index[offsets[t]:offsets[t + 1]], at most W of them; `reach`: 0 … W − 1.
    """
    places = offsets_T1[:-1].unsqueeze(-1) + reach_W
    inside = places < offsets_T1[1:].unsqueeze(-1)
    rows = index_P[places.clamp(max=index_P.shape[0] - 1)]
    mask = inside[:, :, None, None]
    lse = torch.where(mask, parts_lse_PGK[rows], float("-inf"))
    total = torch.logaddexp(own_lse_TGK, torch.logsumexp(lse, dim=1))
    weights = torch.exp(lse - total.unsqueeze(1)).unsqueeze(-1)
    # Where, and not times 0: what stands in a place that is nobody's may be no number.
    values = torch.where(mask.unsqueeze(-1), parts_PGKD[rows].float(), 0.0)
    merged = (values * weights).sum(dim=1) + own_TGKD.float() * torch.exp(own_lse_TGK - total).unsqueeze(-1)
    return merged.to(own_TGKD.dtype).transpose(1, 2).flatten(1)


def best_tokens(logits_RV: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Each row's most likely token, int64 [R], and its log-probability, float32 [R]."""
    logits_RV = logits_RV.float()
    if softcap is not None:
        logits_RV = torch.tanh(logits_RV / softcap) * softcap
    most, best = logits_RV.max(dim=-1)
    return best, most - torch.logsumexp(logits_RV, dim=-1)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)

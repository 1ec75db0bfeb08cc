"""The decoder on CUDA: two attention calls a layer, one over all documents' keys and one over all rows' own.

Shapes: T query tokens (rows × places), G query heads for each of K key-value heads, P partials; see `plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..cache import PooledKeys
from ..decoder import Decoder, Step
from .encoder import angles_of
from .graphs import StepGraphs
from .own import CudaOwnKeys
from .plan import CrossPlan, Readers, bucket, padded, plan_cross
from .pointwise import Pointwise
from .pool import PAGE_TOKENS, KeyPool
from .varlen import Packed, Varlen
from .weights import FusedBlock, factor

# (layer, block, queries [T, H, D], keys and values [T, K, D]) → results [T, G, K, D] and log-sum-exps [T, G, K].
_OwnAttention = Callable[[int, FusedBlock, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A plan with its numbers on the device; `version` tells plans apart, `key` says for which rows it is made."""

    key: tuple
    version: int
    cross: CrossPlan
    numbers: Tensor


class CudaDecoder:
    """See `Decoder`, whose weights it uses. `blocks_wanted`: attention blocks that keep the device busy."""

    def __init__(
        self,
        decoder: Decoder,
        blocks: Sequence[FusedBlock],
        varlen: Varlen,
        do: Pointwise,
        graphs: StepGraphs | None,
        blocks_wanted: int,
    ) -> None:
        self._config, self._blocks, self._norm = decoder.config, blocks, factor(decoder.norm)
        self._varlen, self._do, self._graphs = varlen, do, graphs
        self._blocks_wanted = blocks_wanted
        weight = decoder.norm.weight
        self._dtype, self._device = weight.dtype, weight.device
        self.pool = KeyPool(self._config, self._dtype, self._device)
        self._plan: _Plan | None = None
        self._versions = count()

    def own_keys(self) -> CudaOwnKeys:
        """Room for decodes' own keys, as `forward` reads it."""
        return CudaOwnKeys(self._config, self._dtype, self._device)

    def document_keys(self, states_NE: Tensor) -> PooledKeys:
        """A document's keys and values for every layer, from its encoder states; see `Decoder.document_keys`."""
        where = self.pool.take(states_NE.shape[0])
        for layer, block in enumerate(self._blocks):
            kv = block.qkv.rows(block.first_key, states_NE)
            self.pool.write(layer, where, *self._do.document_heads(kv, block.k_norm))
        return where

    def forward(self, x_RPE: Tensor, positions_RP: Tensor, step: Step) -> Tensor:
        """Embedded tokens [R, P, hidden] at positions [R, P] → hidden states, same shape; see `Decoder.forward`."""
        rows, places, _ = x_RPE.shape
        x_TE, positions_T = x_RPE.reshape(rows * places, -1), positions_RP.reshape(-1)
        plan = self._plan_for(step, places)
        own = cast(CudaOwnKeys, step.own)
        if step.prefill:
            normed = self._layers(x_TE, positions_T, plan.cross, plan.numbers, self._over_prefix(step, places))
        else:
            normed = self._step(x_TE, positions_T, plan, own)
        return normed.view(rows, places, -1)

    def _step(self, x_TE: Tensor, positions_T: Tensor, plan: _Plan, own: CudaOwnKeys) -> Tensor:
        cross = plan.cross

        def work(x_TE: Tensor, positions_T: Tensor, numbers: Tensor) -> Tensor:
            return self._layers(x_TE, positions_T, cross, numbers, self._over_rows(own, positions_T))

        # The plan of a step is made for a bucket of rows already; without one it is for the rows themselves.
        rows = len(cross.offsets) - 1
        if self._graphs is not None and bucket(x_TE.shape[0]) == rows <= own.rows:
            sizes = (rows, cross.sizes, cross.max_q, cross.max_k, cross.width)
            places = (own.generation, self.pool.generation)
            inputs = (x_TE, positions_T, plan.numbers)
            result = self._graphs.run(sizes, places, rows, inputs, plan.version, work)
            if result is not None:
                return result
        return work(x_TE, positions_T, plan.numbers)

    def _layers(
        self, x_TE: Tensor, positions_T: Tensor, plan: CrossPlan, numbers: Tensor, over_own: _OwnAttention
    ) -> Tensor:
        config, do = self._config, self._do
        tokens = x_TE.shape[0]
        cu_q, cu_k, gather, offsets, index = numbers.split(plan.sizes)
        offsets = offsets[: tokens + 1]
        packed = Packed(cu_q, cu_k, plan.max_q, plan.max_k)
        reach = torch.arange(plan.width, dtype=torch.int32, device=x_TE.device)
        angles = angles_of(config, positions_T)
        normed = do.norm(x_TE, self._blocks[0].before)
        following = [block.before for block in self._blocks[1:]] + [self._norm]
        for layer, (block, next_norm) in enumerate(zip(self._blocks, following, strict=True)):
            q, k, v = do.heads(block.qkv(normed), block.q_norm, block.k_norm, *angles[block.sliding])
            own, own_lse = over_own(layer, block, q, k, v)
            asked = self._folded(q).view(tokens, -1).index_select(0, gather)
            parts, parts_lse = self._varlen.with_lse(
                asked.view(-1, config.num_kv_heads, config.head_dim),
                self.pool.keys[layer],
                self.pool.values[layer],
                packed,
                block.scale,
            )
            shape = (-1, config.group, config.num_kv_heads)
            attended = do.merge(
                own,
                own_lse,
                parts.view(*shape, config.head_dim),
                parts_lse.unflatten(0, (len(gather), config.group)),
                offsets,
                index,
                reach,
            )
            x_TE, normed = block.finish(x_TE, attended, next_norm, do)
        return normed

    def _folded(self, q_THD: Tensor) -> Tensor:
        """[T, H, D] → contiguous [T, G, K, D]: the heads of a group become rows, and every key is read once for all."""
        return q_THD.unflatten(1, (self._config.num_kv_heads, -1)).transpose(1, 2).contiguous()

    def _over_rows(self, own: CudaOwnKeys, positions_T: Tensor) -> _OwnAttention:
        """A decoding step: each row over all that stands in its place, what it writes now included."""
        config = self._config
        tokens, group = positions_T.shape[0], config.group
        rows = torch.arange(tokens, dtype=torch.int32, device=positions_T.device)
        cu_q = _interleaved(rows * group, (rows + 1) * group, tokens * group)
        packed, slots = {}, {}
        for kind in set(config.sliding):
            room = own.layer_capacity(config.sliding.index(kind), own.capacity)
            slots[kind] = rows * room + positions_T % room
            # A ring that has wrapped holds exactly the window: every slot counts.
            ends = rows * room + (positions_T + 1).clamp(max=room).int()
            packed[kind] = Packed(cu_q, _interleaved(rows * room, ends, tokens * room), group, room)

        def attend(layer: int, block: FusedBlock, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            keys, values = own.keys[layer].flatten(0, 1), own.values[layer].flatten(0, 1)
            keys.index_copy_(0, slots[block.sliding], k)
            values.index_copy_(0, slots[block.sliding], v)
            return self._attend_folded(q, keys, values, packed[block.sliding], block.scale)

        return attend

    def _over_prefix(self, step: Step, places: int) -> _OwnAttention:
        """New rows: each position over those before it in its row, which are padded to the same number."""
        config, rows = self._config, len(step.lengths)
        starts = torch.arange(rows + 1, dtype=torch.int32, device=self._device)
        single = Packed(starts * config.group, starts, config.group, 1)
        packed = Packed(starts * places, starts * places, places, places)

        def attend(layer: int, block: FusedBlock, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            shape = (rows, places, config.num_kv_heads, config.head_dim)
            step.own.write_prefix(layer, step.rows, step.lengths, k.view(shape), v.view(shape))
            if places == 1:
                return self._attend_folded(q, k, v, single, block.scale)
            window = (config.window - 1 if block.sliding else -1, 0)
            out, lse = self._varlen.with_lse(q, k, v, packed, block.scale, window)
            return self._folded(out), lse.unflatten(1, (config.num_kv_heads, -1)).transpose(1, 2)

        return attend

    def _attend_folded(
        self, q: Tensor, keys: Tensor, values: Tensor, packed: Packed, scale: float
    ) -> tuple[Tensor, Tensor]:
        tokens, config = q.shape[0], self._config
        folded = self._folded(q)
        out, lse = self._varlen.with_lse(folded.flatten(0, 1), keys, values, packed, scale)
        return out.view(folded.shape), lse.unflatten(0, (tokens, config.group))

    def _plan_for(self, step: Step, places: int) -> _Plan:
        """The pass's plan: the last one while no row enters or leaves. It holds no document's keys alive."""
        groups = [(cast(PooledKeys, keys), rows.tolist()) for keys, rows in step.groups]
        key = (step.prefill, places, *((keys.serial, tuple(rows)) for keys, rows in groups))
        if self._plan is None or self._plan.key != key:
            cross = self._cross_plan(groups, len(step.lengths), places, step.prefill)
            numbers = torch.from_numpy(cross.flat())
            if self._device.type == "cuda":
                numbers = numbers.pin_memory().to(self._device, non_blocking=True)
            self._plan = _Plan(key, next(self._versions), cross, numbers)
        return self._plan

    def _cross_plan(
        self, groups: Sequence[tuple[PooledKeys, list[int]]], rows: int, places: int, prefill: bool
    ) -> CrossPlan:
        readers = list(_readers(groups, places))
        config = self._config
        plan = plan_cross(readers, rows * places, PAGE_TOKENS, config.group, config.num_kv_heads, self._blocks_wanted)
        size = None if prefill or self._graphs is None else bucket(rows)
        return plan if size is None else padded(plan, size, PAGE_TOKENS)


def _readers(groups: Sequence[tuple[PooledKeys, list[int]]], places: int) -> Iterator[Readers]:
    for keys, rows in groups:
        queries = (np.array(rows)[:, None] * places + np.arange(places)).reshape(-1)
        yield Readers(keys.runs, keys.tokens, queries)


def _interleaved(starts: Tensor, ends: Tensor, last: int) -> Tensor:
    """[start 0, end 0, start 1, end 1, …, last], int32: every second sequence is a gap."""
    return F.pad(torch.stack((starts, ends), dim=1).flatten(), (0, 1), value=last)

"""The decoder on the CPU kernels: one pass over a document's packed keys for all its decodes, split over the cores."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..cache import PackedKeys
from ..config import TextConfig
from ..decoder import Decoder, Step
from ..layers import Block
from ..rows import Groups
from . import kernels
from .encoder import angles_of
from .linear import PackedLinear, joined
from .weights import PackedBlock, plus_one

# Keys of one document that one core takes at a time, or more when there are jobs enough; tokens that read them.
_KEYS_PER_JOB, _JOBS_WANTED = 1024, 128
_TOKENS_PER_JOB = 64
# Encoder tokens whose keys of all layers are projected together: bounds what stands beside the packed ones.
_TOKENS_PER_CALL = 2048


@dataclass(frozen=True, slots=True)
class _CrossPlan:
    """Attention jobs over the documents' keys: pointers for layer 0, and by how much they move from layer to layer.

    `groups`: whom it is made for. It holds no document's keys alive: whoever has the groups does.
    """

    groups: weakref.ref[Groups]
    places: int
    jobs: np.ndarray
    layer_bytes: np.ndarray
    tokens: Tensor
    spread: Tensor
    partial: kernels.Partial

    def at(self, layer: int) -> np.ndarray:
        """The jobs of one layer."""
        jobs = self.jobs.copy()
        jobs["k"] += self.layer_bytes * np.uint64(layer)
        jobs["v"] += self.layer_bytes * np.uint64(layer)
        return jobs


class CpuDecoder:
    """See `Decoder`, whose weights it uses."""

    def __init__(self, decoder: Decoder, int8: bool) -> None:
        self._config = decoder.config
        blocks = list(cast(Iterator[Block], iter(decoder.layers)))
        attention = [block.self_attn for block in blocks]
        self._document_kv = PackedLinear(*joined([p for a in attention for p in (a.k_proj, a.v_proj)]))
        self._key_norms = torch.stack([plus_one(a.k_norm) for a in attention])
        self._blocks = [PackedBlock(block, decoder.config, int8) for block in blocks]
        self._norm = plus_one(decoder.norm)
        self._plan: _CrossPlan | None = None

    def document_keys(self, states_NE: Tensor) -> PackedKeys:
        """A document's keys and values for every layer, from its encoder states; see `Decoder.document_keys`."""
        config, tokens = self._config, states_NE.shape[0]
        layers, heads, size = config.num_layers, config.num_kv_heads, config.head_dim
        stride = (-(-tokens // 16) * 16 + kernels.SPARE_TOKENS) * size
        keys, values = states_NE.new_zeros(layers, heads, stride), states_NE.new_zeros(layers, heads, stride)
        # Whole tiles at a time, so that no two calls write into one.
        for first in range(0, tokens, _TOKENS_PER_CALL):
            kv = self._document_kv(states_NE[first : first + _TOKENS_PER_CALL])
            shaped = kv.view(-1, layers, 2, heads, size)
            kernels.document_keys(shaped, self._key_norms, keys, values, first, config.norm_eps)
        return PackedKeys(keys, values, tokens)

    def forward(self, x_RPE: Tensor, positions_RP: Tensor, step: Step) -> Tensor:
        """Embedded tokens [R, P, hidden] at positions [R, P] → hidden states [R, P, hidden]; see `Decoder.forward`."""
        config = self._config
        rows, places, _ = x_RPE.shape
        x_TE = x_RPE.reshape(rows * places, -1)
        angles = angles_of(config, positions_RP.flatten())
        plan = self._cross_plan(step, places)
        where = {kind: _own_range(config, kind, step, places) for kind in set(config.sliding)}
        normed_TE = kernels.rms_norm(x_TE, self._blocks[0].before, config.norm_eps)
        following = [block.before for block in self._blocks[1:]] + [self._norm]
        for layer, (block, next_norm) in enumerate(zip(self._blocks, following, strict=True)):
            q, k, v = kernels.plain_heads(
                block.qkv(normed_TE), block.head_norms, angles[block.sliding], config.num_heads, config.num_kv_heads
            )
            kernels.attend(
                plan.at(layer), q, config.num_kv_heads, block.scale, tokens=plan.tokens, partial=plan.partial
            )
            own = _write_own(step, layer, k, v, positions_RP)
            attended = kernels.own_and_merge(
                q, own, where[block.sliding], plan.partial, plan.spread, config.num_kv_heads, block.scale
            )
            normed_TE = block.finish(x_TE, attended, next_norm)
        return normed_TE.view(rows, places, -1)

    def _cross_plan(self, step: Step, places: int) -> _CrossPlan:
        # Rows keep one list of groups until a row enters or leaves: most steps find their plan here.
        plan = self._plan
        if plan is None or plan.groups() is not step.groups or plan.places != places:
            plan = self._plan = _plan_cross(self._config, step, places)
        return plan


def _plan_cross(config: TextConfig, step: Step, places: int) -> _CrossPlan:
    heads, size = config.num_kv_heads, config.head_dim
    jobs, layer_bytes, tokens = [], [], []
    total = sum(len(rows) for _, rows in step.groups) * places
    spread = np.zeros((3, total), dtype=np.int32)
    slots = first = longest = 0
    for document, members in _readers(step, places):
        keys_each, splits = _split(document.tokens, heads * -(-total // _TOKENS_PER_JOB))
        head, split = np.divmod(np.arange(heads * splits), splits)
        fresh = np.zeros(heads * splits, dtype=kernels.JOB)
        moved = head.astype(np.uint64) * np.uint64(document.keys.stride(1) * document.keys.itemsize)
        fresh["k"], fresh["v"] = (moved + np.uint64(t.data_ptr()) for t in (document.keys, document.values))
        fresh["first"], fresh["count"], fresh["head"] = first, len(members), head
        fresh["low"] = split * keys_each
        fresh["high"] = np.minimum(document.tokens, (split + 1) * keys_each)
        fresh["slot"] = slots + np.arange(len(fresh))
        spread[:, members] = np.stack(
            [np.full(len(members), slots), np.full(len(members), splits), np.arange(len(members))]
        )
        jobs.append(fresh)
        layer_bytes.append(np.full(len(fresh), document.keys.stride(0) * document.keys.itemsize, dtype=np.uint64))
        tokens.append(members)
        slots, first, longest = slots + len(fresh), first + len(members), max(longest, len(members))
    width = longest * config.group
    return _CrossPlan(
        groups=weakref.ref(cast(Groups, step.groups)),
        places=places,
        jobs=np.concatenate(jobs),
        layer_bytes=np.concatenate(layer_bytes),
        tokens=torch.from_numpy(np.concatenate(tokens).astype(np.int32)),
        spread=torch.from_numpy(spread),
        partial=kernels.Partial(torch.empty(slots, width, size), torch.empty(slots, width, 2)),
    )


def _readers(step: Step, places: int) -> Iterator[tuple[PackedKeys, np.ndarray]]:
    """Each document with tokens that read it, so many at a time that their partial results stay small."""
    for document, rows in cast(Sequence[tuple[PackedKeys, Tensor]], step.groups):
        members = (rows.numpy()[:, None] * places + np.arange(places)).reshape(-1)
        for first in range(0, len(members), _TOKENS_PER_JOB):
            yield document, members[first : first + _TOKENS_PER_JOB]


def _split(tokens: int, others: int) -> tuple[int, int]:
    """(keys of a job, jobs for all keys of a document); `others`: jobs that there are anyway, for cores to take."""
    splits = min(-(-tokens // _KEYS_PER_JOB), max(1, _JOBS_WANTED // others))
    keys = -(-tokens // splits // 16) * 16
    return keys, -(-tokens // keys)


def _own_range(config: TextConfig, sliding: bool, step: Step, places: int) -> Tensor:
    """Where each token's own keys lie: cache row, first and end, int32 [3, T]."""
    count = len(step.lengths)
    rows = np.repeat(np.arange(count), places)
    if step.prefill:
        end = np.tile(np.arange(places) + 1, count)
        first = np.maximum(0, end - config.window) if sliding else np.zeros_like(end)
    else:
        room = step.own.layer_capacity(config.sliding.index(sliding), step.own.capacity)
        # A ring that has wrapped holds exactly the window: every slot counts.
        end = np.minimum(np.asarray(step.lengths), room)
        first = np.zeros_like(end)
    return torch.from_numpy(np.stack([rows, first, end]).astype(np.int32))


def _write_own(step: Step, layer: int, k_TKD: Tensor, v_TKD: Tensor, positions_RP: Tensor) -> kernels.OwnView:
    """Store the new keys and values; the view that the merge reads: the fresh ones of a prefix, else the cache."""
    tokens, heads, size = k_TKD.shape
    if step.prefill:
        rows = len(step.lengths)
        shaped = k_TKD.view(rows, -1, heads, size), v_TKD.view(rows, -1, heads, size)
        step.own.write_prefix(layer, step.rows, step.lengths, *shaped)
        return kernels.OwnView(k_TKD, v_TKD, (tokens // rows * heads * size, size, heads * size))
    step.own.write_step(layer, positions_RP[:, 0], k_TKD, v_TKD)
    keys, values = step.own.keys[layer], step.own.values[layer]
    return kernels.OwnView(keys, values, (keys.stride(0), keys.stride(1), keys.stride(2)))

"""The encoder on the CPU kernels: O(T · window) on sliding layers, and no scores in memory on full ones."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..encoder import Encoder
from ..layers import Block, rotary_tables
from . import kernels
from .weights import PackedBlock, plus_one

# Query-key pairs that one call covers at most: a second or so, after which others may run.
_PAIRS_PER_CALL = 1 << 26


class CpuEncoder:
    """See `Encoder`, whose embedding, vision tower and weights it uses."""

    def __init__(self, encoder: Encoder, int8: bool) -> None:
        self._config = encoder.config
        layers = cast(Iterator[Block], iter(encoder.layers))
        self._blocks = [PackedBlock(block, encoder.config, int8) for block in layers]
        self._norm = plus_one(encoder.norm)

    def steps(self, x_TE: Tensor, lengths: Sequence[int]) -> Generator[None, None, Tensor]:
        """Embedded tokens of packed documents [T, hidden] → encoder states [T, hidden]; see `Encoder.steps`.

        `x_TE` is used up.
        """
        config, tokens = self._config, x_TE.shape[0]
        angles = _angles(config, lengths)
        bounds = _bounds(lengths, config.window)
        q_THD = x_TE.new_empty(tokens, config.num_heads, config.head_dim)
        out_THD = torch.empty_like(q_THD)
        # Zeros behind the last token: what a tile reads there has no share, but must be a number.
        stride = -(-tokens // 16) * 16 + kernels.SPARE_TOKENS
        keys = x_TE.new_zeros(config.num_kv_heads, stride * config.head_dim)
        values = torch.zeros_like(keys)
        jobs = _jobs(lengths, keys, values, config.group)
        calls = {sliding: list(_calls(jobs, bounds[sliding])) for sliding in set(config.sliding)}
        normed_TE = kernels.rms_norm(x_TE, self._blocks[0].before, config.norm_eps)
        following = [block.before for block in self._blocks[1:]] + [self._norm]
        for block, next_norm in zip(self._blocks, following, strict=True):
            kernels.packed_heads(block.qkv(normed_TE), block.head_norms, angles[block.sliding], q_THD, keys, values)
            for part in calls[block.sliding]:
                kernels.attend(part, q_THD, config.num_kv_heads, block.scale, out=out_THD, bounds=bounds[block.sliding])
                yield
            normed_TE = block.finish(x_TE, out_THD, next_norm)
        return normed_TE


def angles_of(config, positions: Tensor) -> dict[bool, tuple[Tensor, Tensor]]:
    """Cosines and sines [T, D / 2] of sliding (True) and full layers, float32."""
    half = config.head_dim // 2
    ropes = {True: config.rope_sliding, False: config.rope_full}
    tables = {kind: rotary_tables(rope, config.head_dim, positions, torch.float32) for kind, rope in ropes.items()}
    return {kind: (cos[:, :half].contiguous(), sin[:, :half].contiguous()) for kind, (cos, sin) in tables.items()}


def _angles(config, lengths: Sequence[int]) -> dict[bool, tuple[Tensor, Tensor]]:
    return angles_of(config, torch.cat([torch.arange(n) for n in lengths]))


def _bounds(lengths: Sequence[int], window: int) -> dict[bool, tuple[Tensor, Tensor]]:
    """Per token the first key it sees and the one after the last: through the window (True) and without (False)."""
    counts = torch.tensor(list(lengths))
    ends = torch.repeat_interleave(counts.cumsum(0), counts)
    starts = ends - torch.repeat_interleave(counts, counts)
    tokens = torch.arange(len(ends))
    left, right = (window + 1) // 2 - 1, window // 2
    near = torch.maximum(starts, tokens - left), torch.minimum(ends, tokens + right + 1)
    return {True: (near[0].int(), near[1].int()), False: (starts.int(), ends.int())}


def _jobs(lengths: Sequence[int], keys: Tensor, values: Tensor, group: int) -> np.ndarray:
    """Runs of one document's tokens, for each key head; their keys come from the bounds."""
    step = max(1, kernels.BLOCK_ROWS // group)
    starts = np.cumsum([0, *lengths[:-1]])
    first = np.concatenate([np.arange(0, n, step) + start for n, start in zip(lengths, starts, strict=True)])
    ends = np.concatenate([np.full(-(-n // step), start + n) for n, start in zip(lengths, starts, strict=True)])
    heads = keys.shape[0]
    jobs = np.zeros((len(first), heads), dtype=kernels.JOB)
    jobs["first"], jobs["count"] = first[:, None], np.minimum(step, ends - first)[:, None]
    jobs["head"], jobs["slot"] = np.arange(heads), -1
    offsets = np.arange(heads, dtype=np.uint64) * np.uint64(keys.stride(0) * keys.itemsize)
    jobs["k"], jobs["v"] = offsets + np.uint64(keys.data_ptr()), offsets + np.uint64(values.data_ptr())
    return jobs.reshape(-1)


def _calls(jobs: np.ndarray, bounds: tuple[Tensor, Tensor]) -> Iterator[np.ndarray]:
    first, last = jobs["first"], jobs["first"] + jobs["count"] - 1
    low, high = bounds[0].numpy(), bounds[1].numpy()
    pairs = np.cumsum(jobs["count"] * (high[last] - low[first]).astype(np.int64))
    begin = 0
    while begin < len(jobs):
        done = pairs[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(pairs, done + _PAIRS_PER_CALL, side="right")))
        yield jobs[begin:end]
        begin = end

"""The documents' encoder keys and values in one pool, so that one attention call reads those of all documents."""

from __future__ import annotations

import logging
import weakref
from itertools import count

import torch
from torch import Tensor

from ..cache import PooledKeys
from ..config import TextConfig
from .pages import Pages, Run

PAGE_TOKENS = 64
_FIRST_PAGES = 256
# It grows by half, but by no more than this at once: what it takes and does not need yet, activations may need.
_LARGEST_STEP_BYTES = 4 << 30
_log = logging.getLogger(__name__)


class KeyPool:
    """Keys and values of layer i: `keys[i]` and `values[i]`, [pages · PAGE_TOKENS, K, D]; it grows and never shrinks.

    `generation` changes when the tensors move.
    """

    def __init__(self, config: TextConfig, dtype: torch.dtype, device: torch.device) -> None:
        empty = torch.empty(0, config.num_kv_heads, config.head_dim, dtype=dtype, device=device)
        self.keys = [empty] * config.num_layers
        self.values = [empty] * config.num_layers
        self.pages = Pages()
        self.generation = 0
        self._serials = count()
        self._page_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize * PAGE_TOKENS

    def take(self, tokens: int) -> PooledKeys:
        """Room for a document; it is free again when the last reference to what is returned goes."""
        needed = -(-tokens // PAGE_TOKENS)
        runs = self.pages.take(needed)
        if runs is None:
            self._grow(needed - self.pages.free)
            runs = self.pages.take(needed)
            assert runs is not None
        held = PooledKeys(serial=next(self._serials), runs=runs, tokens=tokens, bytes=needed * self._page_bytes)
        # The device works in order: what still reads these pages runs before whatever writes them next.
        weakref.finalize(held, self.pages.give_back, runs).atexit = False
        return held

    def write(self, layer: int, where: PooledKeys, k_NKD: Tensor, v_NKD: Tensor) -> None:
        """Store a document's keys and values of one layer."""
        done = 0
        for first, length in spans(where.runs, where.tokens):
            self.keys[layer][first : first + length] = k_NKD[done : done + length]
            self.values[layer][first : first + length] = v_NKD[done : done + length]
            done += length

    def _grow(self, more: int) -> None:
        least = self.pages.total + more
        step = min(self.pages.total // 2, _LARGEST_STEP_BYTES // self._page_bytes)
        wanted = max(least, self.pages.total + step, _FIRST_PAGES)
        try:
            self._move_to(wanted)
        except torch.OutOfMemoryError:
            if wanted == least:
                raise
            _log.info("no room for a key pool of %d pages; trying %d", wanted, least)
            self._move_to(least)
        # The smallest: a try that failed half way has left some layers with more.
        self.pages.extend(min(tensor.shape[0] for tensor in (*self.keys, *self.values)) // PAGE_TOKENS)

    def _move_to(self, pages: int) -> None:
        self.generation += 1
        # Layer by layer, so that only one of them stands there twice.
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                if old.shape[0] < pages * PAGE_TOKENS:
                    # Zeros: a kernel may load what lies beyond a document's last token, and must find numbers.
                    new = old.new_zeros(pages * PAGE_TOKENS, *old.shape[1:])
                    new[: old.shape[0]] = old
                    tensors[layer] = new


def spans(runs: tuple[Run, ...], tokens: int) -> list[tuple[int, int]]:
    """First place in the pool and length of each contiguous part of a document of `tokens` tokens."""
    parts = []
    for run in runs:
        length = min(tokens, run.length * PAGE_TOKENS)
        parts.append((run.first * PAGE_TOKENS, length))
        tokens -= length
    return parts

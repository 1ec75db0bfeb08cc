"""The decodes' own keys on CUDA: one tensor per kind of layer, positions before heads, as the kernel reads them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor

from ..cache import OwnKeys, rounded
from ..config import TextConfig

# What is kept when no decode runs: captured graphs point into it.
_KEPT_BYTES = 1 << 30
_generations = count(1)


class CudaOwnKeys(OwnKeys):
    """See `OwnKeys`; here `keys[layer]` is [rows, room, K, D], and a step's are written by whoever reads them.

    `generation` changes when the tensors move, and no other object ever has the same.
    """

    def __init__(self, config: TextConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(config, dtype, device)
        self.generation = next(_generations)
        # By kind (sliding or not): [keys and values, layers of the kind, rows, room, K, D].
        self._stacks: dict[bool, Tensor] = {}

    def reserve(self, rows: int, capacity: int) -> None:
        """Make room for `rows` rows of `capacity` positions; what stands there stays."""
        if rows <= self.rows and capacity <= self.capacity:
            return
        rows, _ = rounded(rows, 1)
        rows, capacity = max(self.rows, rows), max(self.capacity, rounded_capacity(capacity))
        try:
            self._grow(rows, capacity)
        except BaseException:
            # Out of memory, in between: what stands there cannot be used any more.
            self._drop()
            raise
        self.rows, self.capacity = rows, capacity
        self.generation = next(_generations)

    def _grow(self, rows: int, capacity: int) -> None:
        config = self._config
        self.keys, self.values = [], []
        for kind in set(config.sliding):
            room = min(capacity, config.window) if kind else capacity
            shape = (2, config.sliding.count(kind), rows, room, config.num_kv_heads, config.head_dim)
            new = torch.zeros(shape, dtype=self._dtype, device=self._device)
            old = self._stacks.pop(kind, None)
            if old is not None:
                # A sliding ring only ever grows before it has wrapped: it reaches its window at the latest.
                new[:, :, : old.shape[2], : old.shape[3]] = old
            self._stacks[kind] = new
        places = {kind: iter(range(config.sliding.count(kind))) for kind in self._stacks}
        for kind in config.sliding:
            place = next(places[kind])
            self.keys.append(self._stacks[kind][0, place])
            self.values.append(self._stacks[kind][1, place])

    def move(self, source: int, target: int) -> None:
        """Copy row `source` over row `target`, to keep the rows in use side by side."""
        for stack in self._stacks.values():
            stack[:, :, target] = stack[:, :, source]

    def wipe(self, row: int) -> None:
        """Zero a row."""
        for stack in self._stacks.values():
            stack[:, :, row] = 0

    def release(self) -> None:
        """Give the memory back where it is much; only when no row is in use."""
        if sum(stack.nbytes for stack in self._stacks.values()) > _KEPT_BYTES:
            self._drop()

    def _drop(self) -> None:
        super().release()
        self._stacks = {}
        self.generation = next(_generations)

    def write_prefix(self, layer: int, rows: slice, lengths: Sequence[int], k_RPKD: Tensor, v_RPKD: Tensor) -> None:
        """Store the first positions of new rows; row i has `lengths[i]` of them, the rest is padding."""
        for store, fresh in ((self.keys[layer], k_RPKD), (self.values[layer], v_RPKD)):
            room, positions = store.shape[1], fresh.shape[1]
            if positions <= room:
                # Padding lands beyond a row's length: unseen until the decode itself overwrites it.
                store[rows, :positions] = fresh
                continue
            for i, length in enumerate(lengths):
                kept = torch.arange(max(0, length - room), length, device=store.device)
                store[rows.start + i, kept % room] = fresh[i, kept]


def rounded_capacity(positions: int) -> int:
    """Positions that are reserved for so many: few different ones, because graphs are captured anew for each."""
    return max(256, 1 << (positions - 1).bit_length()) if positions <= 1024 else -(-positions // 1024) * 1024

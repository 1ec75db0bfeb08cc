"""Keys and values: one set per document, shared by all its decodes, and a preallocated row for each decode's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .config import TextConfig

if TYPE_CHECKING:
    from .cuda.pages import Run


@dataclass(frozen=True, slots=True)
class DocumentKeys:
    """A document's encoder keys and values for every decoder layer: [layers, K, N, D] each."""

    keys: Tensor
    values: Tensor

    @property
    def tokens(self) -> int:
        """N, the document's encoder tokens."""
        return self.keys.shape[2]

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self.keys.nbytes + self.values.nbytes


@dataclass(frozen=True, slots=True)
class PackedKeys:
    """A document's encoder keys and values in the CPU kernels' layout: [layers, K, padded N · D] each."""

    keys: Tensor
    values: Tensor
    tokens: int

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self.keys.nbytes + self.values.nbytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class PooledKeys:
    """A document's place in the CUDA path's pool of keys: runs of pages; `serial` is never used again."""

    serial: int
    runs: tuple[Run, ...]
    tokens: int
    bytes: int


EncodedKeys = DocumentKeys | PackedKeys | PooledKeys


class OwnKeys:
    """The decodes' own keys and values: row r, position p of a layer stands at [r, :, p % capacity of the layer].

    A full layer has room for every position; a sliding layer for one window, reused as a ring. Memory grows, layer by
    layer, when a longer or a further decode enters; never while one runs.
    """

    def __init__(self, config: TextConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._config = config
        self._dtype, self._device = dtype, device
        self.rows = 0
        self.capacity = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def reserve(self, rows: int, capacity: int) -> None:
        """Make room for `rows` rows of `capacity` positions; what stands there stays."""
        if rows <= self.rows and capacity <= self.capacity:
            return
        rows, capacity = rounded(rows, capacity)
        rows, capacity = max(self.rows, rows), max(self.capacity, capacity)
        if not self.keys:
            empty = self._room(0, self._config.num_kv_heads, 0)
            self.keys = [empty] * self._config.num_layers
            self.values = [empty] * self._config.num_layers
        for layer in range(self._config.num_layers):
            self.keys[layer] = self._grown(self.keys[layer], rows, self.layer_capacity(layer, capacity))
            self.values[layer] = self._grown(self.values[layer], rows, self.layer_capacity(layer, capacity))
        self.rows, self.capacity = rows, capacity

    def layer_capacity(self, layer: int, capacity: int) -> int:
        """Positions a row holds in this layer when full layers hold `capacity`."""
        return min(capacity, self._config.window) if self._config.sliding[layer] else capacity

    def move(self, source: int, target: int) -> None:
        """Copy row `source` over row `target`, to keep the rows in use side by side."""
        for tensor in (*self.keys, *self.values):
            tensor[target] = tensor[source]

    def wipe(self, row: int) -> None:
        """Zero a row."""
        for tensor in (*self.keys, *self.values):
            tensor[row] = 0

    def release(self) -> None:
        """Give the memory back; only when no row is in use."""
        self.rows = self.capacity = 0
        self.keys, self.values = [], []

    def write_prefix(self, layer: int, rows: slice, lengths: Sequence[int], k_RPKD: Tensor, v_RPKD: Tensor) -> None:
        """Store the first positions of new rows; row i has `lengths[i]` of them, the rest is padding."""
        for store, fresh in ((self.keys[layer], k_RPKD), (self.values[layer], v_RPKD)):
            room, positions = store.shape[2], fresh.shape[1]
            if positions <= room:
                # Padding lands beyond a row's length: unseen until the decode itself overwrites it.
                store[rows, :, :positions] = fresh.transpose(1, 2)
                continue
            for i, length in enumerate(lengths):
                kept = torch.arange(max(0, length - room), length, device=store.device)
                store[rows.start + i, :, kept % room] = fresh[i, kept].transpose(0, 1)

    def write_step(self, layer: int, positions_R: Tensor, k_RKD: Tensor, v_RKD: Tensor) -> None:
        """Store one position of each of the first R rows."""
        count = positions_R.shape[0]
        rows = torch.arange(count, device=positions_R.device)
        slots = positions_R % self.keys[layer].shape[2]
        self.keys[layer][rows, :, slots] = k_RKD
        self.values[layer][rows, :, slots] = v_RKD

    def _grown(self, old: Tensor, rows: int, room: int) -> Tensor:
        # A sliding ring only ever grows before it has wrapped: it reaches its window at the latest.
        new = self._room(rows, self._config.num_kv_heads, room)
        new[: old.shape[0], :, : old.shape[2]] = old
        return new

    def _room(self, rows: int, kv_heads: int, room: int) -> Tensor:
        shape = (rows, kv_heads, room, self._config.head_dim)
        return torch.zeros(shape, dtype=self._dtype, device=self._device)


def rounded(rows: int, capacity: int) -> tuple[int, int]:
    """The rows and positions that are reserved for so many: rows double, positions go by 64."""
    return 1 << max(3, (rows - 1).bit_length()), -(-capacity // 64) * 64

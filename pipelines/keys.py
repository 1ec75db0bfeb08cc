"""Keys as arrays: 32 hex characters in a table, 16 bytes (numpy `S16`) in memory, never a Python object each."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

KEY = np.dtype("S16")

_NIBBLES = np.full(256, 255, np.uint8)
for _value, _digit in enumerate(b"0123456789abcdef"):
    _NIBBLES[_digit] = _value
_PAIRS = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), dtype="u2")


def keys_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A table's hex key column as S16; ValueError when a value is not 32 lower-case hex digits."""
    if isinstance(column, pa.ChunkedArray):
        parts = [keys_of(chunk) for chunk in column.chunks]
        return np.concatenate(parts) if parts else np.empty(0, KEY)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    column = column.cast(pa.large_string())
    if not len(column):
        return np.empty(0, KEY)
    _, offset_buffer, data = column.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
    if column.null_count or (np.diff(offsets) != 32).any():
        raise ValueError("a key is not 32 hex digits")
    digits = _NIBBLES[np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]]
    if (digits > 15).any():
        raise ValueError("a key is not 32 hex digits")
    return (digits[0::2] << 4 | digits[1::2]).view(KEY)


def hex_of(keys: np.ndarray) -> pa.Array:
    """S16 keys as a string column of 32 hex digits."""
    data = _PAIRS[np.ascontiguousarray(keys, KEY).view(np.uint8)]
    offsets = np.arange(len(keys) + 1, dtype=np.int32) * 32
    return pa.StringArray.from_buffers(len(keys), pa.py_buffer(offsets), pa.py_buffer(data))


def find(sorted_keys: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `keys` whether it stands in `sorted_keys`, and where (0 when it does not)."""
    if not len(sorted_keys) or not len(keys):
        return np.zeros(len(keys), bool), np.zeros(len(keys), np.int64)
    # Searching in key order walks the array once instead of jumping about in it.
    order = np.argsort(keys, kind="stable")
    at = np.empty(len(keys), np.int64)
    at[order] = np.searchsorted(sorted_keys, keys[order])
    at[at == len(sorted_keys)] = 0
    found = sorted_keys[at] == keys
    return found, np.where(found, at, 0)


class KeySet:
    """A growing set of keys: sorted runs of falling size, merged as they grow, 16 bytes a key."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def contains(self, keys: np.ndarray) -> np.ndarray:
        """For each of `keys` whether it is in the set."""
        found = np.zeros(len(keys), bool)
        for run in self._runs:
            found |= find(run, keys)[0]
        return found

    def add(self, keys: np.ndarray) -> None:
        """Puts `keys` in; those already there, or twice among them, count once."""
        fresh = np.unique(keys)
        fresh = fresh[~self.contains(fresh)]
        while len(self._runs) and len(fresh) and len(self._runs[-1]) < 2 * len(fresh):
            fresh = np.sort(np.concatenate((self._runs.pop(), fresh)), kind="stable")
        if len(fresh):
            self._runs.append(fresh)

    def merge(self, other: KeySet) -> None:
        """Puts another set's keys in."""
        for run in other._runs:
            self.add(run)

    def first_seen(self, keys: np.ndarray) -> np.ndarray:
        """For each of `keys` whether it is neither in the set nor earlier among them."""
        new = ~self.contains(keys)
        first = np.zeros(len(keys), bool)
        first[np.unique(keys, return_index=True)[1]] = True
        return new & first
